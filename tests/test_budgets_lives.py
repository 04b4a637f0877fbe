"""Whose holds a journal's next life may give back."""

from __future__ import annotations

from pathlib import Path

from farebox.budgets.lives import Lives


def test_the_next_life_finds_the_owners_of_the_last(tmp_path: Path) -> None:
    """Owners of a life that ended without a word are found by the next, with those of lives before, in order."""
    first = Lives(tmp_path, "boot")
    first.add("1")
    first.add("2")
    second = Lives(tmp_path, "boot")
    assert second.left == ("1", "2")
    second.add("3")
    assert Lives(tmp_path, "boot").left == ("1", "2", "3")


def test_what_was_given_back_is_not_found_again(tmp_path: Path) -> None:
    """Once the holds of earlier owners are given back only this life's own are to be found."""
    Lives(tmp_path, "boot").add("1")
    second = Lives(tmp_path, "boot")
    second.add("2")
    second.settled()
    assert (second.left, Lives(tmp_path, "boot").left) == ((), ("2",))


def test_a_life_that_ended_in_order_leaves_nothing(tmp_path: Path) -> None:
    """After an orderly end there is no file, unless holds of earlier owners were not given back yet."""
    first = Lives(tmp_path, "boot")
    first.add("1")
    first.ended()
    assert list(tmp_path.iterdir()) == []
    Lives(tmp_path, "boot").add("2")
    second = Lives(tmp_path, "boot")
    second.add("3")
    second.ended()
    assert Lives(tmp_path, "boot").left == ("2",)


def test_after_a_reboot_nothing_is_given_back(tmp_path: Path) -> None:
    """A machine that was down may have lost the last of the journal, so its owners' holds are not touched."""
    Lives(tmp_path, "boot").add("1")
    assert Lives(tmp_path, "another").left == ()
    assert Lives(tmp_path, None).left == ()


def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path) -> None:
    """Rubbish in its place neither stops a start nor names an owner."""
    (tmp_path / "owners.json").write_bytes(b'{"boot": 1')
    lives = Lives(tmp_path, "boot")
    assert lives.left == ()
    lives.add("4")
    assert Lives(tmp_path, "boot").left == ("4",)


def test_without_a_boot_id_nothing_is_written(tmp_path: Path) -> None:
    """Where the system does not tell one boot from the next there is nothing to go by."""
    Lives(tmp_path, None).add("1")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_journal_gives_nothing_back_ever(tmp_path: Path) -> None:
    """Where a begin may be missing, no life to come gives back what was held until then; later owners count again."""
    Lives(tmp_path, "boot").add("1")
    damaged = Lives(tmp_path, "boot", whole=False)
    assert (damaged.left, Lives(tmp_path, "boot").left) == ((), ())
    damaged.add("2")
    assert Lives(tmp_path, "boot").left == ("2",)
