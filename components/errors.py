"""Errors that a user can fix; the message includes the remedy."""


class DataError(ValueError):
    """The photos cannot be used for training; the message names the files or breeds."""


class WeightsError(ValueError):
    """The weights of a backbone are not available; the message names the file or setting to fix."""


class DamagedFileError(ValueError):
    """A file that a component wrote is damaged; the message names it."""


class HistoryError(ValueError):
    """Past runs cannot be read, or the requested run does not exist; the message names the file or existing runs."""
