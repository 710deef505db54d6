"""The end of a run: final/ holds the step worth using, and the log says which it is and why."""

from __future__ import annotations

import shutil
from pathlib import Path

from acestep.core.paths import atomic_folder
from acestep.core.words import counted
from acestep.training.loop import Session, describe_adapter, write_adapter


def finish(session: Session, state: str) -> Path:
    """Write final/ and the end of the log."""
    loop = session.state
    if not session.processes.is_main:
        return session.run.final
    step, reason = _write_final(session)
    if loop.ended_early:
        judgements = counted(loop.judgements_without_gain, "judgements")
        session.record.warn(loop.step, f"Ended early: {judgements} without improvement.")
    session.record.event(
        "end", state=state, step=loop.step, final_step=step, reason=reason, ended_early=loop.ended_early
    )
    return session.run.final


def _write_final(session: Session) -> tuple[int, str]:
    """Write final/, the best step where one was found, else the last good one; returns that step, and why it is."""
    run, loop = session.run, session.state
    before = session.curve.get(0)
    if before is not None and loop.best_loss is not None and loop.best_loss >= before:
        session.record.warn(
            loop.step,
            f"The adapter is no better than the model without it: validation loss {before:.5f} before, "
            f"{loop.best_loss:.5f} at its best. Lower the learning rate, or look at the labels.",
        )
    if loop.best_step is not None and run.best.is_dir():
        judged = "validation" if session.validation else "training"
        reason = f"lowest {judged} loss, {loop.best_loss:.5f} at step {loop.best_step}"
        if loop.best_step == loop.step:
            reason = "the last step, which is also the best"
        _copy_best(session, loop.best_step, reason)
        return loop.best_step, reason
    good = session.good
    if good is not None and loop.rollbacks and not good.updates:
        step, reason = good.step, "the last good step, to which the run went back"
    else:
        step = loop.step
        reason = "the last step, which is also the best" if loop.best_step == step else "the last step"
    write_adapter(session, run.final, step, reason)
    return step, reason


def write_what_was_learnt(session: Session) -> None:
    """Write final/ after a run that diverged, unless it has learnt nothing yet."""
    if session.run.best.is_dir() or (session.good is not None and session.good.step):
        _write_final(session)


def _copy_best(session: Session, step: int, reason: str) -> None:
    with atomic_folder(session.run.final) as temporary:
        shutil.copytree(session.run.best, temporary, dirs_exist_ok=True)
        describe_adapter(session, temporary, step, reason)
