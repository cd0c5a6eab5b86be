"""The processor's names: which generation it is, where the name alone does not say."""

from __future__ import annotations

import os

import pytest

from blockyard.machine import processor

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("told", "name", "vendor", "family"),
    [
        (EPYC, "AMD EPYC (family 26, model 2)", "AuthenticAMD", 26),
        (EPYC.replace("26", "unknown"), "AMD EPYC", "AuthenticAMD", None),
        (EPYC.replace("model\t\t: 2\n", ""), "AMD EPYC", "AuthenticAMD", 26),
        (ARM, os.uname().machine, None, None),
        (None, os.uname().machine, None, None),
    ],
    ids=["whole", "no family", "no model", "another kind", "nothing"],
)
def test_the_name_has_family_and_model_where_they_are_told(tmp_path, monkeypatch, told, name, vendor, family) -> None:
    path = tmp_path / "cpuinfo"
    if told is not None:
        path.write_text(told)
    monkeypatch.setattr(processor, "_TOLD_BY_LINUX", path)
    assert (processor.processor_name(), processor.vendor_name(), processor.family()) == (name, vendor, family)
