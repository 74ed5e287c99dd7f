"""The contact sheet of captured photos: a page with the photos, the answers and the commands to review them."""

from collections.abc import Sequence

from components.photo_examples import thumbnail_data_url
from components.reporting.html_templates import render
from serving.inbox import Item


def contact_sheet(items: Sequence[Item], total: int) -> str:
    """Return the page.

    Args:
        items: Captures to show.
        total: Number of captures in the inbox.
    """
    cards = []
    for item in items:
        try:
            image = thumbnail_data_url(item.capture.photo.read_bytes())
        except FileNotFoundError:  # deleted meanwhile
            continue
        cards.append({"item": item, "answer": item.capture.answer, "image": image})
    return render("contact_sheet", cards=cards, total=total)
