"""Cases to score: JSON `{"cases": [{"id", "prediction", "references"}]}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmcl.errors import Problem, UserError
from mmcl.protocols import Prediction

_HINT = 'each case is {"id": "...", "prediction": "...", "references": ["..."]}'


@dataclass(slots=True)
class Cases:
    """The cases of a file, in its order.

    Attributes:
        rows: what to score.
        places: where each stands, for messages.
        sets: of each, the set that it is part of (key `corpus`): metrics whose scores depend on the other rows, such
            as CIDEr, see one set at a time. Empty where the case names none.
        unscorable: ids of cases whose references are an empty list.
    """

    rows: list[Prediction] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    unscorable: list[str] = field(default_factory=list)


def read_cases(text: str, path: str) -> Cases | None:
    """The cases in a text; None if it is not one JSON document that has them (then it may be an answer file).

    A prediction or reference that is a list of four numbers is a box. References that are an empty list are nobody's
    answer: the case is kept, and scores 0.

    Raises:
        UserError: naming every case that is none.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        return None
    cases = data.get("cases") if isinstance(data, Mapping) else None
    if not isinstance(cases, list):
        return None
    found, problems = Cases(), []
    for number, case in enumerate(cases):
        place = f"{path}:cases[{number}]"
        if not isinstance(case, Mapping):
            problems.append(Problem(place, "is not a JSON object", _HINT))
            continue
        prediction, references = _text(case.get("prediction")), case.get("references")
        if isinstance(references, str):
            references = [references]
        if isinstance(references, list):
            references = [_text(each) for each in references]
        if not isinstance(prediction, str):
            what = "prediction must be a text" if prediction is not None else "has no prediction"
            problems.append(Problem(place, what, _HINT))
        elif not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
            problems.append(Problem(place, "references must be a list of texts", _HINT))
        else:
            identity = str(case.get("id", number))
            metadata = {key: value for key, value in case.items() if key not in ("id", "prediction", "references")}
            row = Prediction(identity, "", "", prediction, tuple(references), metadata=metadata)
            found.rows.append(row)
            found.places.append(f"{place} (id {identity})")
            found.sets.append(str(case.get("corpus", "")))
            if not references:
                found.unscorable.append(identity)
    if problems:
        raise UserError(problems=problems)
    return found


def _text(value: object) -> object:
    """The value, a box as its text."""
    is_box = isinstance(value, list) and len(value) == 4 and all(isinstance(each, int | float) for each in value)
    return json.dumps(value) if is_box else value
