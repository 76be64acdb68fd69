"""How far preparing and encoding have come, in a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    done: int  # shards
    total: int
    seconds: float

    def pace(self, count: int, unit: str) -> str:
        """How fast it is, and the time that is left."""
        left = round(self.seconds / self.done * (self.total - self.done))
        return f"{count / max(self.seconds, 1e-9):,.0f} {unit}/s  {left // 60}m {left % 60:02}s left"


@dataclass(frozen=True)
class DocumentProgress(Progress):
    """Of preparing."""

    documents: int
    size: int  # bytes written
    quarantined: int

    def __str__(self) -> str:
        return (
            f"{self.done:,}/{self.total:,} shards  {self.documents:,} documents  {self.size / 2**20:,.1f} MiB  "
            f"{self.quarantined:,} not used  {self.pace(self.documents, 'documents')}"
        )


@dataclass(frozen=True)
class ImageProgress(Progress):
    """Of encoding."""

    images: int

    def __str__(self) -> str:
        return (
            f"{self.done:,}/{self.total:,} shards encoded  {self.images:,} images  "
            f"{self.pace(self.images, 'images')}"
        )
