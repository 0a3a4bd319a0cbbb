"""Words of a caption as the scripts of COCO's caption task see them: Penn Treebank tokens, lower case, no punctuation.

Written from the behaviour of the tokenizer (Marcus et al. 1993, with the scripts' list of punctuation), without Java;
rare abbreviations and symbols may fall apart elsewhere.
"""

from __future__ import annotations

import re
from functools import lru_cache

_DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SYMBOLS = frozenset("$#%&*+/<=>@\\^_|~")
_ALIKE = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "--",
        "\u2014": "--",
        "\u2026": "...",
        "\u20ac": "$",
        "\u00a3": "#",
        "\u00bc": "1/4",
        "\u00bd": "1/2",
        "\u00be": "3/4",
    }
)
"""Quotation marks, dashes and signs that stand for others."""

_SHORT = "mr|mrs|ms|dr|prof|st|ave|jr|sr|vs|etc|inc|ltd|co|corp|dept|gen|gov|mt|jan|feb|aug|sept|oct|nov|dec"
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)\S+                      # addresses
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+              # of mail
    | [#@][^\W\d]\w*                            # tags and users
    | (?:\b[^\W\d_]{{1,2}}\.)+[^\W\d_]\.        # u.s., p.m., ph.d.
    | \b[^\W\d_]\.(?=\s+[^\W\d_])               # an initial
    | \b(?:{_SHORT})\.                          # abbreviations
    | \bno\.(?=\s*\d)
    | \d+(?:[.,:/]\d+)+                         # 1,000  5.50  7:30  1/2
    | (?:ca|wo|sha)(?=n't\b) | \w+?(?=n't\b) | n't\b
    | '(?:s|m|d|ll|re|ve)\b
    | '\d\ds?\b                                # the '90s
    | can(?=not\b) | (?<=can)not\b
    | gon(?=na\b) | wan(?=na\b) | (?<=gon)na\b | (?<=wan)na\b
    | gim(?=me\b) | lem(?=me\b) | (?<=gim)me\b | (?<=lem)me\b | got(?=ta\b) | (?<=got)ta\b
    | \w+(?:[-/&.]\w+|'(?!s\b|m\b|d\b|ll\b|re\b|ve\b|t\b)\w+)*
    | \.\.\.+ | --+ | '' | `` | [?!]{{2,}}
    | \S
    """,
    re.IGNORECASE | re.VERBOSE,
)


@lru_cache(maxsize=1 << 16)
def tokens(text: str) -> tuple[str, ...]:
    """The tokens of a caption; references come again at every stage, so they are remembered."""
    found = []
    for token in _TOKEN.findall(" ".join(text.translate(_ALIKE).split()).lower()):
        if token in _BRACKETS:
            found.append(_BRACKETS[token])
        elif token not in _DROPPED and (len(token) > 1 or token.isalnum() or token in _SYMBOLS):
            found.append(token)
    return tuple(found)
