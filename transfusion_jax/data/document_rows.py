"""The rows of a corpus by number: each is a function of (seed, documents, row number)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transfusion_jax.config import Config
from transfusion_jax.data.batch import Batch
from transfusion_jax.data.documents import Corpus
from transfusion_jax.data.packing.epochs import Planner, planner_of
from transfusion_jax.data.packing.plan import VERSION
from transfusion_jax.data.packing.plan_store import default_cache
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.data.stream import LAST_ROW
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.storage.paths import Place


@dataclass(frozen=True, repr=False)  # Grain prints its stages, and a corpus is long
class DocumentRows:
    """Rows by number, phase after phase; an epoch has a plan of its own and continues the passes of its sources."""

    corpus: Corpus
    planner: Planner
    config: Config
    special: SpecialTokens
    skipped: tuple[tuple[int, int], ...] = ()  # stretches [begin, end) of row numbers left out, in order

    def __len__(self) -> int:
        return LAST_ROW

    def __getitem__(self, row: int) -> Batch:
        return assemble(row, [self._piece(*piece) for piece in self.pieces(row)], self.config, self.special)

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """The pieces of a row: the corpus's number of the document, the first element, and the length of each."""
        return self.planner.pieces(int(row))

    def after(self, row: int, count: int) -> int:
        """The row that is `count` rows further on, the rows that are left out not counted."""
        place = row + count
        for begin, end in self.skipped:
            if row < end and begin <= place:
                place += end - max(begin, row)
        return place

    @property
    def epoch(self) -> int:
        """DocumentRows from row 0 on until every source of the first phase has been read at least once."""
        return self.planner.epoch

    def _piece(self, document: int, start: int, length: int) -> Piece:
        return Piece(self.corpus[document], start, length, self.corpus.find(document)[0])


def make_rows(
    corpus: Corpus,
    config: Config,
    special: SpecialTokens,
    log: Callable[[str], None] = print,
    cache: Path | None = None,
    version: int = VERSION,
    run: Place | None = None,
) -> DocumentRows:
    """Opens the stream of a corpus, and plans its first rows unless they are in the cache.

    Args:
        corpus: the documents, by sources in the order of `config.data.source_names`.
        config: names the mixtures, the row's sizes and the seed.
        special: the special tokens.
        log: prints a line for the user.
        cache: a folder of plans (by default `default_cache()`).
        version: of the plans: a run keeps the one that it began with.
        run: the directory of the run that reads it, which keeps where epochs end.

    Raises:
        ConfigError: the corpus cannot be planned.
        StorageError: the plan cannot be written.
    """
    planner = planner_of(version, corpus, config, cache or default_cache(), run, log)
    planner.begin()
    return DocumentRows(corpus, planner, config, special)
