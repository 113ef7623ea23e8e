"""A symlink is replaced in one step, also after a kill in the middle of an earlier one."""

from pathlib import Path

from ace.operations.durable import replace_symlink


def test_a_link_is_made_and_replaced_and_what_a_kill_left_is_no_hindrance(tmp_path: Path) -> None:
    link = tmp_path / "accepted"
    for name in ("v1", "v2"):
        (tmp_path / ".accepted.tmp").symlink_to("v0")
        replace_symlink(link, name)
        assert link.readlink() == Path(name)
        assert [path.name for path in tmp_path.iterdir()] == ["accepted"]
