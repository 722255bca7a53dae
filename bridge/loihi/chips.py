"""What is published of the two chips, every figure with its source and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

DAVIES = "Davies et al., IEEE Micro 38(1), 2018, doi 10.1109/MM.2018.112130359, as others quote it; not read itself"
BRIEF = "Intel Labs, Loihi 2 technology brief, 2021, as others quote it; not read itself"
NENGO = "NengoLoihi (Applied Brain Research, 2018 to 2022), nengo_loihi/block.py, read"
PRE_SILICON = f"{DAVIES}: table 2, simulated before there was silicon (SDF and SPICE), at 0.75 V; not a measurement"


@dataclass(frozen=True)
class Figure:
    """A published number and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Chip:
    """What one chip and one of its neurocores hold.

    ``memory`` is bytes a core: of synapses alone, or, where ``state_in_memory``, of the neurons' state as well.
    ``input_axons`` and ``output_axons``, a core, are None where no limit is published.
    """

    name: str
    cores: Figure
    neurons: Figure
    memory: Figure
    state_in_memory: bool
    input_axons: Figure | None
    output_axons: Figure | None


LOIHI_1 = Chip(
    name="Loihi 1",
    cores=Figure(128, f"{DAVIES}: 128 neuromorphic cores; sure, all quote the same"),
    neurons=Figure(1024, f"{NENGO}: at most 1 024 compartments a core; sure"),
    memory=Figure(2**17, f"{NENGO}: at most 2^20 bits of synapses a core; sure"),
    state_in_memory=False,
    input_axons=Figure(4096, f"{NENGO}: at most 4 096 input axons a core; sure"),
    output_axons=Figure(4096, f"{NENGO}: at most 4 096 output axons a core; sure"),
)

LOIHI_2 = Chip(
    name="Loihi 2",
    cores=Figure(128, f"{BRIEF}: 128 cores; fairly sure (some quote 120, those that a program can use)"),
    neurons=Figure(8192, f"{BRIEF}: up to 1 million neurons a chip, and so 8 192 a core; fairly sure"),
    memory=Figure(
        192 * 1024,
        f"{BRIEF}: 192 KB a core; less sure, from press reports. That synapses and state share it is our reading; "
        "routing and programs are not subtracted",
    ),
    state_in_memory=True,
    input_axons=None,
    output_axons=None,
)

CHIPS = (LOIHI_1, LOIHI_2)

SYNAPTIC_OPERATION = Figure(23.6e-12, f"{PRE_SILICON}; joules a synaptic spike operation, the table's minimum")
ACTIVE_UPDATE = Figure(81e-12, f"{PRE_SILICON}; joules a neuron update, active")
INACTIVE_UPDATE = Figure(52e-12, f"{PRE_SILICON}; joules a neuron update, inactive")
SPREAD = Figure(
    10,
    "our own margin of an order of magnitude; not published, not fitted. The one measurement looked at cannot settle "
    "it: Blouw et al., arXiv 1812.01739, 2019, read, give 0.27 mJ an inference, but not the number of time steps, and "
    "about 70 of its 81 mW may be the embedded processors'",
)
ENERGY_NOTE = (
    "Energy is estimated, not measured: Loihi 1's energies per operation, which were simulated before there was "
    "silicon, times the operations counted. Low end: every neuron update inactive. High end: every one active, and "
    f"{SPREAD.value} times the sum, a margin chosen here and not derived from any measurement. Neither is a bound: "
    "leakage, spike transport, embedded processors and the host are not modelled. Loihi 2's energies are not "
    "published: for it this range is a proxy of unknown error."
)
