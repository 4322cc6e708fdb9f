"""The counts of a part of the harness."""

from dataclasses import dataclass, field
from typing import final


@final
@dataclass
class Tally:
    """Cases of a part of the harness and what became of them."""

    name: str
    cases: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def count(self, kind: str, number: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number

    def __str__(self) -> str:
        parts = [f"{number:,} {kind}" for kind, number in self.counts.items()]
        parts += [f"{len(self.lost)} lost", f"{len(self.differing)} differing"]
        return f"{self.name}: {self.cases:,} cases: {', '.join(parts)}"

    @property
    def failures(self) -> list[str]:
        return [f"{self.name}: {text}" for text in (*self.lost, *self.differing)]
