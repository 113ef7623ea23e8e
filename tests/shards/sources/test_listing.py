from collections.abc import Iterator

from shards.core.errors import SourceError
from shards.sources.listing import read_or_warn


def test_a_list_in_another_form_is_a_warning_and_no_row() -> None:
    def refuse() -> Iterator[int]:
        yield 1
        raise SourceError("a.csv: no columns")

    warnings: list[str] = []
    assert read_or_warn(lambda: [1, 2], warnings) == [1, 2]
    assert warnings == []
    assert read_or_warn(refuse, warnings) == []
    assert warnings == ["a.csv: no columns; what the file says stays unknown"]
