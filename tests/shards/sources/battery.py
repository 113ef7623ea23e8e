"""What every source must do, whatever it reads."""

import re
from pathlib import Path

from shards.sources.base import Source


def check_source(source: Source, *, has_public_ids: bool = False) -> None:
    """The battery; raises AssertionError with what the source does wrong."""
    records = source.records()
    assert records, "a source without images must raise SourceError"
    assert source.records() == records, "records must not change between calls"
    assert source.channels in (1, 3)
    ids = [record.source_id for record in records]
    assert len(set(ids)) == len(ids), "source ids must be unique"
    places = [record.place for record in records]
    assert len(set(places)) == len(places), "places must tell images apart"
    names = sorted(records[0].labels)
    for record in records:
        assert record.image.is_file(), "records name existing files"
        assert record.patient == record.patient.strip() != "", "every record has a patient"
        assert record.study != "", "an unknown study is None"
        assert record.view is None or re.fullmatch(r"[A-Za-z0-9 _-]{1,16}", record.view), "a view is a short code"
        assert sorted(record.labels) == names, "every record has the same labels"
        assert set(record.labels.values()) <= {1, 0, -1, None}, "labels are 1, 0, -1 or None"
        assert all(isinstance(path, Path) and path.is_file() for path in record.masks.values())
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in record.masks), "structures have no dot"
        if not has_public_ids:
            for secret in (record.source_id, record.patient, record.study):
                assert secret is None or secret not in record.place, "places must not repeat ids or paths"
