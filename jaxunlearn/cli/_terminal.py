"""Results and progress on a terminal."""

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from jaxunlearn.core.streams import Stream, printable


class PlainConsole(Console):
    """A console whose texts are taken as they are: no markup, and no escape sequences in them."""

    def __init__(self, stream: IO[str], **options: Any):
        plain: Any = Stream(stream)
        super().__init__(file=plain, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of what is to be shown; rich's own escape sequences are no text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
