"""What a data set's reader has to say beside its arrays."""

from jaxunlearn.core.streams import tell


def notice(text: str) -> None:
    """A line on stderr."""
    tell(f"jaxunlearn: {text}")
