"""Steps whose loss or gradient is not a number: skipped, then undone, then the end of the run with a diagnosis.

A copy of the last state that gave an ordinary loss waits in the computer's memory. When too many steps in a row fail,
the weights themselves are spoilt, though they may still be numbers: adapter, optimizer and averages go back to that
copy, and the run goes on with the steps that follow. All decisions rest on numbers that every process has alike.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.training.checkpoints import LoopState

if TYPE_CHECKING:
    from acestep.training.loop import Session

KEEP_EVERY = 50
"""Updates between copies of a good state: rarely enough to cost nothing, often enough to lose little."""
MOST_ROLLBACKS = 3
"""So many ways back without a new good state in between, then the run ends."""
EXPLODED = 10.0
"""A loss of so many times the usual one is no chance of the draw: single losses differ by a factor of three or so."""
_USUAL_OVER = 20
"""Steps over which the usual loss is averaged."""


class Diverged(UserError):
    """Going back does not help: the run has ended, and its last good state is back in place."""


@dataclass
class GoodState:
    """Adapter, optimizer and averages as they were when a step had an ordinary loss; held in main memory."""

    step: int
    weights: list[torch.Tensor]
    averages: list[torch.Tensor]
    optimizer: dict[str, Any]
    updates: int = 0
    """How often the optimizer has changed the weights since."""

    @classmethod
    def of(cls, session: Session) -> GoodState:
        return cls(
            step=session.state.step,
            weights=[_copied(parameter) for parameter in session.adapter.parameters()],
            averages=[_copied(tensor) for tensor in session.averaging.kept()],
            optimizer=_copied(session.optimizer.state_dict()),
        )

    @torch.no_grad()
    def put_back(self, session: Session) -> None:
        """Bring the session back to this state, but for its place in the run."""
        kept = [*self.weights, *self.averages]
        for tensor, value in zip(_tensors_in_use(session), kept, strict=True):
            tensor.copy_(value)
        # copied once more: an optimizer on the processor goes on with the very tensors it is given
        session.optimizer.load_state_dict(_copied(self.optimizer))
        self.updates = 0


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return copy.deepcopy(value)


def _tensors_in_use(session: Session) -> list[torch.Tensor]:
    return [*session.adapter.parameters(), *session.averaging.kept()]


def note_before_update(session: Session, loss: float) -> None:
    """The weights as they are gave this loss, and the optimizer is about to change them: keep them if it is time."""
    good = session.good
    if good is None:  # a measured step of no run
        return
    state = session.state
    if is_exploded(state, loss):
        if not state.exploded:
            session.record.warn(
                state.step + 1,
                f"The loss of step {state.step + 1} is {loss:.3g}, where it used to be {state.usual_loss:.3g}: "
                "the learning rate is probably too high.",
            )
        state.exploded = True
    else:
        state.exploded = False
        note_usual(state, loss)
        if good.updates >= KEEP_EVERY:
            session.good = good = GoodState.of(session)
            state.rollbacks = 0
    good.updates += 1


def is_exploded(state: LoopState, loss: float) -> bool:
    """Whether a loss is out of all proportion to those before."""
    return state.usual_loss is not None and loss > EXPLODED * state.usual_loss


def note_usual(state: LoopState, loss: float) -> None:
    """Take an ordinary loss into the running mean."""
    state.usual_steps = min(state.usual_steps + 1, _USUAL_OVER)
    usual = loss if state.usual_loss is None else state.usual_loss
    state.usual_loss = usual + (loss - usual) / state.usual_steps


def note_skipped(session: Session, learning_rate: float) -> Diverged | None:
    """Count a step that failed; go back after too many in a row. Returns the diagnosis when that is no use."""
    state, good, limit = session.state, session.good, session.settings.nan_limit
    assert good is not None
    state.bad_steps += 1
    state.skipped_steps += 1
    session.record.warn(state.step, f"Step {state.step} was skipped: its loss or gradient is not a number.")
    if state.bad_steps < limit:
        return None
    tried = f", also after going back {_times(state.rollbacks)}" if state.rollbacks else ""
    hopeless = not good.updates or state.rollbacks >= MOST_ROLLBACKS
    in_a_row = f"{counted(limit, 'steps')} in a row"
    roll_back(session, f"{in_a_row} had a loss or gradient that is not a number")
    if not hopeless:
        return None
    state.rollbacks = 0  # whoever resumes the run wants it to try again
    return Diverged(
        f"{in_a_row} up to step {state.step} had a loss or gradient that is not a number{tried}.",
        fix=f"Lower the learning rate, which is {learning_rate:.3g}, or train with precision bf16 or fp32.",
        detail=f"The last good state, that of step {good.step}, is saved in {session.run.path}.",
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def roll_back(session: Session, why: str) -> None:
    """Go back to the last good state and say so. The steps that follow are those of the plan."""
    state, good = session.state, session.good
    assert good is not None
    state.bad_steps = 0
    if not good.updates:
        return
    good.put_back(session)
    state.rollbacks += 1
    session.record.event("rollback", step=state.step, to_step=good.step, reason=why)
    session.record.warn(
        state.step, f"Back to the adapter of step {good.step}: {why}. The learning rate is probably too high."
    )


def is_failing(state: LoopState) -> bool:
    """Whether steps fail one after the other. A single one may be chance, as in fp16."""
    return state.bad_steps > 1


def leave_failing_steps(session: Session) -> None:
    """Before a state is kept to go on from: where steps have begun to fail, go back; its weights may be the reason."""
    if is_failing(session.state):
        roll_back(session, f"the last {session.state.bad_steps} steps had a loss or gradient that is not a number")


def refuse_spoilt_weights(session: Session) -> None:
    """Before weights are written: where they are no usable numbers any more, go back to those that were."""
    norm = torch.nn.utils.get_total_norm([tensor.detach() for tensor in _tensors_in_use(session)])
    if session.good is not None and not math.isfinite(float(norm)):
        roll_back(session, "its weights had become infinite or no numbers")
