"""Legend proposed for a reference map: a packaged one if its codes, names and colours agree, else the map's own.

names in the file   packaged legend of the same codes   proposed
agree               yes                                 the packaged one
others              yes                                 a legend of the file's names; the packaged one is told
none                yes                                 the packaged one, to be checked
any or none         no                                  a legend of the file's names and colours
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from cobertes.errors import InputFileError
from cobertes.labels.class_names import ClassNames
from cobertes.labels.code_scan import CodeScan
from cobertes.labels.crosswalk import crosswalk_names, load_crosswalk
from cobertes.labels.legend import CODES, Legend, LegendClass, legend_names, load_legend

GOOD_FIT, COUNTED_FIT, MOST_UNKNOWN = 0.4, 0.75, 0.05
"""Share of a packaged legend's classes that must occur for it to be proposed (higher if its codes just count from
1, as any map's may), and largest share of pixels outside it."""
SCATTERED_CODES, SCATTER = 8, 3
"""So many codes, reaching beyond so many times their number, fit a legend that has all of them: not by chance."""
AGREEMENT = 0.8
"""Share of the map's names that must be those of a packaged legend."""
MOST_CLASSES = CODES - 3
NODATA_NAMES = ("nodata", "no data", "unclassified", "background", "fill", "fill value", "not observed", "outside")


@dataclass(frozen=True)
class Proposal:
    """A legend for a map.

    legend      packaged, or of the map's own codes
    packaged    True if it is in the package
    crosswalk   name of the packaged crosswalk to it, None if the map has the legend's codes
    recode      legend code of each source code of a map whose codes are none that a legend can have
    classes     class of each code that occurs and has one
    evidence    why, on one line
    doubts      what to check, a line each
    """

    legend: Legend
    packaged: bool
    classes: Mapping[int, LegendClass]
    evidence: str
    crosswalk: str | None = None
    recode: Mapping[int, int] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def unknown(self, scan: CodeScan) -> list[int]:
        """Codes that occur without a class, nodata left out."""
        nodata = (self.legend.nodata, *self.legend.also_nodata)
        return [c for c in scan.found if c not in self.classes and (scan.values.are_colours or c not in nodata)]


@dataclass(frozen=True)
class Candidate:
    """A packaged legend, with the class of each source code; by a crosswalk, or by its own codes."""

    legend: Legend
    classes: Mapping[int, LegendClass]
    crosswalk: str | None = None


def propose_legend(scan: CodeScan, names: ClassNames) -> Proposal:
    """Legend for the codes of a map, and the names and colours that come with it.

    Raises InputFileError if the map has no codes, or more than a legend can have classes.
    """
    codes = scan.found
    if not set(codes) - {0 if scan.is_zero_in_doubt else None}:
        raise InputFileError(f"{scan.values.name} holds no class codes: every pixel looked at is nodata")
    fitting = [c for c in _candidates(scan) if _fit(c, scan) > 0]
    agreeing = [c for c in fitting if _agree(c, scan, names)]
    if agreeing:
        best = max(agreeing, key=lambda c: _rank(c, scan, names))
        return _packaged(best, agreeing, scan, names)
    return _own(scan, names, fitting)


def _candidates(scan: CodeScan) -> Iterable[Candidate]:
    for name in legend_names():
        legend = load_legend(name)
        if not scan.values.are_colours:
            yield Candidate(legend, {c.code: c for c in legend.classes})
        elif len(set(legend.colours)) == len(legend):
            yield Candidate(legend, {int(c.colour[1:], 16): c for c in legend.classes})
    for name in crosswalk_names():
        walk = load_crosswalk(name)
        if walk.source == name and not scan.values.are_colours:  # other codes of one legend, one to one
            legend = load_legend(str(walk.target))
            codes = {code: to for code, to in walk.codes.items() if isinstance(code, int) and to != "nodata"}
            yield Candidate(legend, {code: legend.find(to) for code, to in codes.items()}, name)


def _fit(candidate: Candidate, scan: CodeScan) -> float:
    """Share of a legend's classes that occur, less the share of pixels outside it; -1 if it does not fit."""
    legend, known = candidate.legend, candidate.classes
    found = set(scan.found)
    total = sum(scan.counts[code] for code in found)
    # a file that declares another nodata has a class for every code, the legend's nodata too
    without = {*legend.also_nodata, *([legend.nodata] if scan.values.nodata is None else [])}
    unknown = sum(scan.counts[code] for code in found - set(known) - without)
    share = len(found & set(known)) / len(known)
    counted = sum(code <= len(known) for code in known) >= 0.75 * len(known)
    scattered = len(found) >= SCATTERED_CODES and max(found) > SCATTER * len(found) and not found - set(known)
    enough = share >= (COUNTED_FIT if counted else GOOD_FIT) or (scattered and not counted)
    return share - unknown / total if enough and unknown <= MOST_UNKNOWN * total else -1.0


def _rank(candidate: Candidate, scan: CodeScan, names: ClassNames) -> tuple[float, float, float, int, str]:
    """Order of candidates: by names, colours, fit, codes with a class; by name, so that it never changes."""
    matched = len(set(scan.found) & set(candidate.classes))
    same = _same_names(candidate, names), _same_colours(candidate, names)
    return *same, _fit(candidate, scan), matched, candidate.legend.name


def _agree(candidate: Candidate, scan: CodeScan, names: ClassNames) -> bool:
    """True unless the names that come with a map are others than a legend's."""
    named = any(code in names.names for code in scan.found)
    return not named or _same_names(candidate, names) >= AGREEMENT


def _same_names(candidate: Candidate, names: ClassNames) -> float:
    """Share of the codes with a class and a name whose names agree, 0 if there are none."""
    pairs = [(names.names[code], c.name) for code, c in candidate.classes.items() if code in names.names]
    return sum(is_same_name(*pair) for pair in pairs) / len(pairs) if pairs else 0.0


def _same_colours(candidate: Candidate, names: ClassNames) -> float:
    pairs = [(names.colours[code], c.colour) for code, c in candidate.classes.items() if code in names.colours]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else 0.0


def is_same_name(one: str, other: str) -> bool:
    """True for two names of one class: "Tree cover" and "Trees", "Built-up" and "Built up area"."""
    first, second = _words(one), _words(other)
    if not first or not second:
        return False
    shared = {a for a in first for b in second if a[:4] == b[:4] and (a.startswith(b) or b.startswith(a))}
    alike = SequenceMatcher(None, " ".join(sorted(first)), " ".join(sorted(second))).ratio()
    return len(shared) >= min(len(first), len(second)) or alike >= 0.75


def _words(name: str) -> set[str]:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = set(re.findall(r"[a-z]{2,}", plain)) - {
        "and",
        "or",
        "of",
        "the",
        "with",
        "cover",
        "area",
        "areas",
        "land",
    }
    return {word.removesuffix("s") for word in words}


def _packaged(best: Candidate, agreeing: list[Candidate], scan: CodeScan, names: ClassNames) -> Proposal:
    named = [code for code in scan.found if code in names.names]
    evidence = "the codes fit"
    if named:
        evidence += f" and the names agree ({names.names_from})"
    coloured = [code for code in scan.found if code in names.colours and code in best.classes]
    if coloured:
        same = sum(names.colours[code] == best.classes[code].colour for code in coloured)
        evidence += f", {same} of {len(coloured)} colours {'too' if same else 'do'} ({names.colours_from})"
    if not named:
        evidence += ", check that they mean the same"
    others = [c.crosswalk or c.legend.name for c in agreeing if c is not best and not named]
    doubts = [f"also fits: {', '.join(others)}"] if others else []
    if best.crosswalk:
        evidence = f"by crosswalk {best.crosswalk}, {evidence}"
    if scan.is_zero_in_doubt:
        zero = best.classes.get(0)
        says = f"is '{zero.name}' there, unless codes = {{ 0 = \"nodata\" }}" if zero else "is taken for nodata"
        doubts.append(f"{_zero(scan)} {says}: the file does not declare which value means nodata")
    classes = {code: c for code, c in best.classes.items() if code in scan.counts and code in scan.found}
    return Proposal(best.legend, True, classes, evidence, best.crosswalk, doubts=tuple(doubts))


def _own(scan: CodeScan, names: ClassNames, fitting: list[Candidate]) -> Proposal:
    """A legend with a class per code: numbered anew if its codes are none that a legend can have."""
    doubts = []
    empty = [code for code in scan.found if _is_nodata_name(names.names.get(code, ""))]
    codes = [code for code in scan.found if code not in empty]
    if scan.is_zero_in_doubt and 0 in codes and 0 not in names.names:
        codes.remove(0)
        doubts.append(
            f"{_zero(scan)} may be a class: it is taken for nodata, as the file declares none. If it is one, give "
            f"the legend a class of code 0 and another nodata"
        )
    if len(codes) > MOST_CLASSES:
        kind = "colours: a picture, not classes" if scan.values.are_colours else "codes"
        raise InputFileError(
            f"{scan.values.name} holds {len(codes):,} different {kind}, but a legend has at most {MOST_CLASSES} "
            f"classes. Group them: a crosswalk of two columns, code (or range, 311-313) and class."
        )
    is_renumbered = scan.values.are_colours or any(not 0 <= code < CODES for code in codes)
    numbers = {code: i for i, code in enumerate(codes, 1)} if is_renumbered else {code: code for code in codes}
    nodata = 0 if is_renumbered else _nodata_code(scan, codes)
    keys = _unique_keys([names.names.get(code, "") for code in codes], numbers, codes)
    classes = {
        code: LegendClass(
            numbers[code], key, names.names.get(code) or _plain_name(scan, code), _colour(i, code, scan, names)
        )
        for i, (code, key) in enumerate(zip(codes, keys, strict=True))
    }
    also_nodata = () if is_renumbered else tuple(code for code in empty if code != nodata)
    legend = Legend("own", nodata, tuple(classes.values()), also_nodata)
    known = [code for code in codes if code in names.names]
    evidence = f"{len(known)} of {len(codes)} names from {names.names_from}" if known else ""
    if known and fitting:
        nearest = max(fitting, key=lambda c: _fit(c, scan)).legend.name
        evidence += f"; {nearest} has these codes, but other names"
    recode = {**numbers, **dict.fromkeys(empty, nodata)} if is_renumbered and not scan.values.are_colours else {}
    return Proposal(legend, False, classes, evidence, recode=recode, doubts=tuple(doubts))


def _zero(scan: CodeScan) -> str:
    return f"class 0 ({100 * scan.counts[0] / scan.pixels:.3g} % of the pixels)"


def _is_nodata_name(name: str) -> bool:
    return " ".join(re.findall(r"[a-z]+", name.lower())) in NODATA_NAMES


def _nodata_code(scan: CodeScan, codes: list[int]) -> int:
    """Nodata for a legend of these codes: as declared, else 0, else the last free code."""
    declared = scan.values.nodata_code
    if declared is not None and 0 <= declared < CODES:
        return declared
    return 0 if 0 not in codes else max(set(range(CODES)) - set(codes))


def _plain_name(scan: CodeScan, code: int) -> str:
    return f"Colour {scan.values.text(code)}" if scan.values.are_colours else f"Class {code}"


def _unique_keys(names: list[str], numbers: Mapping[int, int], codes: list[int]) -> list[str]:
    """A key per class: its name in lower case and dashes, with its code if the name is none or another's too."""
    keys = ["-".join(re.findall(r"[a-z0-9]+", _ascii(name).lower())) for name in names]
    return [
        key
        if key and keys.count(key) == 1 and key not in ("nodata", "default")
        else f"{key or 'class'}-{numbers[code]}"
        for key, code in zip(keys, codes, strict=True)
    ]


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _colour(number: int, code: int, scan: CodeScan, names: ClassNames) -> str:
    """The map's own colour of a code, else one that differs from its neighbours'."""
    if scan.values.are_colours:
        return scan.values.text(code)
    made = (97 * number % 200 + 40, 57 * number % 200 + 40, 151 * number % 200 + 40)
    return names.colours.get(code) or "#" + "".join(f"{part:02x}" for part in made)
