"""Whose idea a macro is, for a bibliography: a recipe has no plug-in of its own that could say so."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["cited"]

_CHAIN = """
@inproceedings{mirzadeh2020improved,
  author = {Mirzadeh, Seyed Iman and Farajtabar, Mehrdad and Li, Ang and Levine, Nir and Matsukawa, Akihiro and
    Ghasemzadeh, Hassan},
  title = {{Improved Knowledge Distillation via Teacher Assistant}},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2020},
  eprint = {1902.03393},
  archivePrefix = {arXiv}
}
"""
_DENSE = """
@inproceedings{son2021densely,
  author = {Son, Wonchul and Na, Jaemin and Choi, Junyong and Hwang, Wonjun},
  title = {{Densely Guided Knowledge Distillation using Multiple Teacher Assistants}},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2021},
  eprint = {2009.08825},
  archivePrefix = {arXiv}
}
"""
_GROW = """
@misc{gskd2019growing,
  author = {{chanhwa-lee}},
  title = {{Growing Student KD}},
  howpublished = {github.com/chanhwa-lee/GSKD},
  note = {course project},
  year = {2019}
}
"""
_ENTRIES = {"chain": ("takd", _CHAIN), "dense": ("dgkd", _DENSE), "grow": ("gskd", _GROW)}


def cited(macro: str, path: Sequence[str]) -> dict[str, str]:
    """What a config that uses a macro cites, as its key `cite` has it.

    A chain of two networks is a teacher and a student, and nobody's assistant.

    Args:
        macro: its key in a config.
        path: names of its networks.
    """
    name, entry = _ENTRIES[macro]
    return {} if macro == "chain" and len(path) < 3 else {name: entry.strip()}
