"""Several runs of one claim in one line: verdicts counted, numbers as mean and interval."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from helpers import claims

NUMBER = re.compile(r"(?<![\w.])([+-]?)(\d[\d,]*(?:\.\d+)?|\.\d+)(e[+-]?\d+)?(?![\w])")
OWN_INTERVAL = re.compile(r"(?<=\d) ?\[[^\[\]]*,[^\[\]]*\]")


def verdicts(found: Sequence[str]) -> str:
    """``reproduced``, or ``reproduced 2/3, not reproduced 1/3``."""
    counts = Counter(found)
    if len(counts) == 1 and len(found) == 1:
        return found[0]
    ordered = [word for word in claims.VERDICTS if counts[word]]
    return ", ".join(f"{word} {counts[word]}/{len(found)}" for word in ordered)


def measured(texts: Sequence[str]) -> str:
    """The measured texts of several runs as one.

    Texts that differ in their numbers alone become that text with ``mean [low, high]`` (95 %, of
    the mean, Student's t) at every number that varies; a run's own intervals give way. Otherwise
    all texts are listed.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) == 1:
        return distinct[0]
    texts = [OWN_INTERVAL.sub("", text) for text in texts]  # of one run; ours is over the runs
    if len({NUMBER.sub("#", text) for text in texts}) > 1:
        return " / ".join(distinct[:5]) + (" / ..." if len(distinct) > 5 else "")
    columns = zip(*(list(NUMBER.finditer(text)) for text in texts), strict=True)
    parts, last = [], 0
    for matches in columns:
        first = matches[0]
        parts.append(texts[0][last : first.start()])
        parts.append(_interval([m.group() for m in matches]))
        last = first.end()
    return "".join(parts) + texts[0][last:]


def _interval(words: Sequence[str]) -> str:
    if len(set(words)) == 1:
        return words[0]
    values = [float(word.replace(",", "")) for word in words]
    found = claims.paired(values, [0.0] * len(values))
    sign = "+" if any(word[0] in "+-" for word in words) else ""
    form = f"{sign}.{max(len(word.partition('.')[2]) for word in words)}f"
    if any("e" in word for word in words):
        form = f"{sign}.3g"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
