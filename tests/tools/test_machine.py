"""The choice of a device and the description of the machine."""

import pytest
import torch

from minimoe.tools.machine import describe_machine, pick_device


def test_unavailable_devices_are_refused_with_the_available_ones():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"device 'tpu' is not available; choose one of .*cpu"):
        pick_device("tpu")


def test_the_description_has_what_measurements_depend_on():
    machine = describe_machine("cpu")
    assert (machine["device"], machine["torch"]) == ("cpu", torch.__version__)
    assert machine["threads"] == torch.get_num_threads()
    assert machine["processor"]
