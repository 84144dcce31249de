"""The model checker: every state that some nodes of a real engine can get into, within bounds.

A simulation follows one path at a time, and can only hope to meet the rare one.  Here the engine's
own objects (``clone``, ``step``, ``ready``, ``advance``, ``key``) are driven through *every* order
of messages, losses, syncs, crashes, elections and proposals that some small bounds allow, and the
rules are judged in every state.  No engine is named here.

* :mod:`~replog.testing.model.bounds`: how far it goes
* :mod:`~replog.testing.model.local`: one node, its disk, and what an action makes of it
* :mod:`~replog.testing.model.space`: states as numbers, and the network
* :mod:`~replog.testing.model.judge`: what must hold between nodes, and what must happen at all
* :mod:`~replog.testing.model.search`: the walk, and what it may leave out
* :mod:`~replog.testing.model.render`: a counterexample as a trace

What the model leaves out: time (no heartbeats after an election, no retransmission), several
messages taken before one ``ready()``, torn and partial writes, snapshots, more than some entries.
The simulator has those.
"""

from __future__ import annotations

from replog.testing.model.bounds import Bounds
from replog.testing.model.search import Counterexample, Exploration, explore

__all__ = ["Bounds", "Counterexample", "Exploration", "explore"]
