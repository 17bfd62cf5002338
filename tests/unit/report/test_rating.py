from __future__ import annotations

from kdscale.report.rating import rated, said


def test_a_network_is_rated_by_what_its_results_hold() -> None:
    assert rated({"top1": 0.9312}) == ("top-1", 0.9312)
    assert rated({"miou": 0.5, "pixel_accuracy": 0.9}) == ("mIoU", 0.5)
    assert rated({"top1": None}) is None
    assert (said({"top1": 0.9312}), said({"miou": 0.5}), said({})) == ("top-1 0.9312", "mIoU 0.5000", "")
