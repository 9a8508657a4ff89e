"""How far an evaluator is: a bar on a terminal; where there is none (a cluster's log, a pipe) a line a minute."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

EVERY = 60.0                               # seconds between two lines
LINE = "{desc}: {n_fmt} of {total_fmt} images, {elapsed} so far, {remaining} left{postfix}"


class Bar:
    """Of `total` images `initial` are done before; shown: False for neither bar nor lines."""

    def __init__(self, name: str, total: int, initial: int = 0, *, shown: bool = True):
        self.name, self.total, self.initial, self.n, self.text = name, total, initial, initial, ""
        self.bar = tqdm(total=total, initial=initial, desc=name, unit="img", disable=None if shown else True)
        self.in_lines = shown and self.bar.disable
        self.began = self.told = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.bar.close()

    def to(self, n: int, text: str | None = None) -> None:
        """n images are done; text: what is said beside, the last one if None."""
        self.bar.update(n - self.n)
        self.n = n
        if text is not None:
            self.text = text
            self.bar.set_postfix_str(text)
        now = time.monotonic()
        if self.in_lines and n < self.total and now - self.told >= EVERY:
            self.told = now
            print(tqdm.format_meter(n, self.total, now - self.began, prefix=self.name, unit="img", initial=self.initial,
                                    postfix=self.text, bar_format=LINE), file=sys.stderr, flush=True)
