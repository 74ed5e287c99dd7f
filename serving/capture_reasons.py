"""Reasons why the gateway captures a photo."""

# The photo was chosen at random among all photos.
RANDOM_SHARE = "random"
# The model was uncertain about the photo.
UNCERTAIN = "uncertain"
