"""Together in a box: a loopback server like Together AI's live endpoints, with a billing ledger and faults on request.

It imports nothing of batchrun outside this package, so that one misunderstanding cannot pass on both sides.
"""

from batchrun.simulator.account import Account, Charge
from batchrun.simulator.faults import Fault, FaultKind
from batchrun.simulator.server import Simulator
from batchrun.simulator.settings import Headers, Settings, SettingsError, read_script

__all__ = [
    "Account",
    "Charge",
    "Fault",
    "FaultKind",
    "Headers",
    "Settings",
    "SettingsError",
    "Simulator",
    "read_script",
]
