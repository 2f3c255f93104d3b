"""What a run was trained on, and before it the runs whose students it has trained further."""

from __future__ import annotations

from collections.abc import Mapping

from training.fingerprint import Plain

# In the fingerprint of a run that trains another's student further, what is known of that one's data.
FINE_TUNE = "fine_tune"
_OF_DATA = ("lake", "snapshot", "split", "where", "labelled_fraction", "label_seed")


def trainings_of(fingerprint: Mapping[str, Plain]) -> list[dict[str, Plain]]:
    """Return what decided about the data of a run, and of all runs before it, from the last to the first."""
    found, prefix = [], ""
    while True:
        found.append({name: fingerprint[prefix + name] for name in _OF_DATA if prefix + name in fingerprint})
        prefix += f"{FINE_TUNE}."
        if not any(name.startswith(prefix) for name in fingerprint):
            return found


def ancestry_of(fingerprint: Mapping[str, Plain]) -> dict[str, Plain]:
    """Return what a run that trains the student of this one further has to keep of this one's fingerprint."""
    kept = {name: value for name, value in fingerprint.items() if name in _OF_DATA or name.startswith(f"{FINE_TUNE}.")}
    return {f"{FINE_TUNE}.{name}": value for name, value in kept.items()}
