"""What can be wrong with an evaluation before it begins, by code.  No torch here.

docs/why-is-my-robust-accuracy-wrong.md has a section for each code.  E- refuses, W- warns.
"""

import sys
from collections.abc import Collection, Iterable
from typing import NamedTuple

from common.errors import UserError

PAGE = "docs/why-is-my-robust-accuracy-wrong.md"
CODES = {
    "E-MODE": "the network is in train mode, or its batch norm statistics move while it is judged",
    "E-SOFTMAX": "the network returns probabilities instead of logits",
    "E-RANGE": "the images are not in [0,1]",
    "E-NORMALISED-TWICE": "the images are normalised twice",
    "E-EPS": "eps has no size that its norm can have: 8 for 8/255",
    "W-EPS": "eps is unusual for its norm, or nearly but not quite k/255: 0.031 for 8/255",
    "E-GRADIENT": "the gradient by the image is zero, missing or not finite",
    "W-GRADIENT": "the cross-entropy saturates: its gradient is zero for some images, that of the logits is not",
    "E-RANDOM": "the output changes from call to call",
    "E-BATCH": "the output for an image depends on the other images of its batch",
    "E-CLASSES": "too few classes for the attack, or labels beyond the network's classes",
    "E-SHAPE": "the network cannot take the images",
    "E-CLEAN": "the clean accuracy is not the one stored with the checkpoint",
    "W-CLEAN": "the clean accuracy is no better than chance",
    "E-DATA": "the test images are not those of the training record",
}
REFUSING = tuple(code for code in CODES if code.startswith("E-"))


class Finding(NamedTuple):
    """code: a key of CODES; text: what is wrong, and after a colon how to mend it."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


def refusal(code: str, text: str) -> UserError:
    """The UserError of one finding."""
    return UserError(f"{Finding(code, text)} (see {PAGE})")


def checked(words: Collection[str]) -> tuple[str, ...]:
    """Codes that a user accepts; UserError for one that refuses nothing."""
    for word in words:
        if word not in REFUSING:
            raise UserError(f"--allow {word}: no such code; there are {', '.join(REFUSING)}", code="E-ALLOW")
    return tuple(sorted(set(words)))


def decide(findings: Iterable[Finding], allow: Collection[str] = (), *, progress: bool = True) -> tuple[Finding, ...]:
    """UserError for the first finding that refuses and is not in `allow`; the others are said on stderr and returned.

    progress: whether they are said.
    """
    found = tuple(findings)
    refused = [finding for finding in found if finding.code in REFUSING and finding.code not in allow]
    if refused:
        others = dict.fromkeys(finding.code for finding in refused[1:])
        more = f"; besides {', '.join(others)}" if others else ""
        raise UserError(f"{refused[0]}{more} (see {PAGE})")
    if progress:
        for finding in found:
            print(f"{'accepted' if finding.code in REFUSING else 'warning'}: {finding}", file=sys.stderr)
    return found
