"""Together in a box: a loopback server like Together AI's, live and batch, with a billing ledger and faults on request.

It imports nothing of batchrun outside this package, so that one misunderstanding cannot pass on both sides.
"""

from batchrun.simulator.account import Account, Charge
from batchrun.simulator.batch_faults import BatchFault, BatchFaultKind, Call, Files, Status
from batchrun.simulator.batch_records import Job, StoredFile
from batchrun.simulator.faults import ContextWords, Fault, FaultKind
from batchrun.simulator.server import Simulator
from batchrun.simulator.settings import CreditsEnd, CreditsWord, Headers, Settings, SettingsError, read_script

__all__ = [
    "Account",
    "BatchFault",
    "BatchFaultKind",
    "Call",
    "Charge",
    "ContextWords",
    "CreditsEnd",
    "CreditsWord",
    "Fault",
    "FaultKind",
    "Files",
    "Headers",
    "Job",
    "Settings",
    "SettingsError",
    "Simulator",
    "Status",
    "StoredFile",
    "read_script",
]
