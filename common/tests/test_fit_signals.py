"""The training loop when it is asked to end: at any step, in a validation, while it writes, twice."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from common import checkpoint, errors, signals
from common.environment import ROOT
from common.errors import UserError
from common.files import replacing
from common.fit import SGD
from common.tests.fit_parts import CrossEntropy, Noise, network, rows
from common.tests.test_fit_resume import kept_files, validation, weights_of, whole

STEPS = 4                              # an epoch


def ask():
    """SIGTERM to this process; its handler runs before the next line."""
    os.kill(os.getpid(), signal.SIGTERM)


def at_step(number):
    return CrossEntropy(lambda ctx: ask() if ctx.step == number else None)


def cut(folder, **changes):
    """A run that a signal ends; what it says."""
    with signals.caught(), pytest.raises(signals.Stopped) as stopped:
        whole(folder, **changes)
    assert stopped.value.status == 143
    return stopped.value.line


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Folder of the uninterrupted run, with momentum kept or cleared at each epoch's start."""
    made = {}

    def folder(resets):
        if resets not in made:
            made[resets] = tmp_path_factory.mktemp("whole")
            whole(made[resets], optim=SGD(reset_each_epoch=resets))
        return made[resets]
    return folder


@pytest.mark.parametrize("step", [0, 2, 3, 6, 7, 15])
@pytest.mark.parametrize("resets", [False, True])
def test_a_run_stopped_at_a_step_goes_on_behind_it_to_the_same_bits(tmp_path, uncut, step, resets):
    optim, trained = SGD(reset_each_epoch=resets), []
    said, (epoch, index) = cut(tmp_path, optim=optim, objective=at_step(step)), divmod(step, STEPS)
    assert said.startswith(f"stopped by SIGTERM: epoch {epoch + 1} is done up to step {index + 1} and kept in ")
    assert said.endswith("; type the same command again and it goes on")
    record = whole(tmp_path, optim=optim, model=network(3),
                   objective=CrossEntropy(lambda ctx: trained.append(ctx.step)))
    assert trained == list(range(step + 1, 16))                  # no step is made twice
    assert weights_of(tmp_path) == weights_of(uncut(resets)) and rows(tmp_path) == rows(uncut(resets))
    assert (record.epochs, record.steps) == (4, 16)


def test_a_run_stopped_in_every_step_and_validation_ends_with_the_same_bits(tmp_path, uncut):
    asked, validated = set(), set()

    def once(ctx):
        if ctx.step not in asked:
            asked.add(ctx.step)
            ask()

    def stopped_validation(judged):
        numbers = validation(judged)
        if (key := round(numbers["error"], 9)) not in validated:
            validated.add(key)
            ask()
        return numbers

    ends = 0
    while True:
        try:
            with signals.caught():
                whole(tmp_path, model=network(0 if ends < 2 else 3), objective=CrossEntropy(once),
                      validate=stopped_validation)
            break
        except signals.Stopped:
            ends += 1
    assert ends == 16 + 5                                        # the steps, and validations with the one before all
    assert weights_of(tmp_path) == weights_of(uncut(False)) and rows(tmp_path) == rows(uncut(False))


def test_killed_after_it_was_stopped_it_goes_on_from_the_step_kept(tmp_path, uncut):
    cut(tmp_path, objective=at_step(5))
    kept = kept_files(tmp_path)["resume.pt"]

    def kill(ctx):
        if ctx.step == 7:
            raise KeyboardInterrupt                              # stands for a kill: nothing is written

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path, objective=CrossEntropy(kill))
    assert kept_files(tmp_path)["resume.pt"] == kept
    whole(tmp_path, model=network(3))
    assert weights_of(tmp_path) == weights_of(uncut(False)) and rows(tmp_path) == rows(uncut(False))


@pytest.mark.parametrize("call", [1, 3])
def test_stopped_in_a_validation_the_steps_are_not_made_again(tmp_path, uncut, call):
    """call: of the validation; the first is the one after epoch 1."""
    calls, trained = [], []

    def stop(judged):
        calls.append(0)
        if len(calls) == call + 1:
            ask()
            pytest.fail("a validation is not waited for")
        return validation(judged)

    assert f"epoch {call} is done up to step 4" in cut(tmp_path, validate=stop)
    whole(tmp_path, model=network(3), objective=CrossEntropy(lambda ctx: trained.append(ctx.step)))
    assert trained == list(range(4 * call, 16))
    assert weights_of(tmp_path) == weights_of(uncut(False)) and rows(tmp_path) == rows(uncut(False))


def test_a_best_score_whose_weights_were_not_written_counts_for_nothing(tmp_path, monkeypatch):
    """Stopped between both, after the only epoch: best.pt and worst.pt were written once before training."""
    real, calls = checkpoint.save_state, []

    def save(path, state, **more):
        calls.append(path.name)
        if len(calls) == 3:
            ask()
        real(path, state, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", save)
        assert "epoch 1 is done up to step 4" in cut(tmp_path / "cut", epochs=1, snapshots=())
    whole(tmp_path / "whole", epochs=1, snapshots=())
    record = whole(tmp_path / "cut", epochs=1, snapshots=(), model=network(3))
    for name in record.weights:
        first, second = (folder / f"weights/{name}.pt" for folder in (tmp_path / "cut", tmp_path / "whole"))
        assert first.read_bytes() == second.read_bytes(), name


def test_the_writing_of_an_epoch_is_waited_for(tmp_path, monkeypatch, uncut):
    real = checkpoint.save_tree

    def save(path, tree, **more):
        ask()
        real(path, tree, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tree", save)
        assert "epoch 1 is done and kept" in cut(tmp_path)
    state = checkpoint.load_tree(tmp_path / "weights/resume.pt")
    assert state["epoch"] == 1 and "running" not in state and len(rows(tmp_path)) == 1
    whole(tmp_path)
    assert weights_of(tmp_path) == weights_of(uncut(False)) and rows(tmp_path) == rows(uncut(False))


def test_a_signal_within_the_writing_of_weights_is_no_failing_disk(tmp_path, monkeypatch):
    """torch's writer in C++ turns what is raised within it into an error of its own."""
    real = torch.save

    def save(tree, stream):
        class Asks:
            def write(self, content):
                ask()
                return stream.write(content)

            def flush(self):
                stream.flush()
        real(tree, Asks())

    monkeypatch.setattr(torch, "save", save)
    cut(tmp_path)                                                 # in best.pt, of the network before training
    assert (tmp_path / "weights/best.pt").exists()


def test_before_the_first_step_there_is_nothing_to_keep(tmp_path):
    def stop(judged):
        ask()

    assert cut(tmp_path / "first", validate=stop).startswith("stopped by SIGTERM: what is done is kept;")
    assert not list(tmp_path.rglob("*.pt"))

    class Stops(Noise):
        def epoch(self, epoch, start=0):
            ask()
            return super().epoch(epoch, start)

    assert "no epoch is done yet" in cut(tmp_path, batches=Stops(), validate_first=False)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_state_that_is_not_finite_takes_no_place(tmp_path):
    whole(tmp_path, epochs=1)
    before = kept_files(tmp_path)
    broken = CrossEntropy(lambda ctx: ask() if ctx.step == 6 else float("nan") if ctx.step == 5 else None)
    with signals.caught(), pytest.raises(UserError, match="loss is nan in epoch 2, step 2"):
        whole(tmp_path, objective=broken)
    assert kept_files(tmp_path) == before


def test_the_seconds_of_both_sittings_count(tmp_path):
    cut(tmp_path, objective=CrossEntropy(lambda ctx: time.sleep(0.3) if ctx.step == 0 else ask()))
    assert whole(tmp_path, epochs=1).seconds >= 0.3
    assert checkpoint.load_tree(tmp_path / "weights/resume.pt")["seconds"] >= 0.3


# --- signals themselves ---

def stopped_command(main, capsys):
    """Exit status and stderr of a command, where SIGINT means what it means at a terminal: a shell's background job
    starts with it ignored, and so would these tests in one."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            errors.exit_cleanly(main)
    finally:
        signal.signal(signal.SIGINT, former)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("number", "status", "said"), [(signal.SIGTERM, 143, "stopped by SIGTERM"),
                                                        (signal.SIGINT, 130, "interrupted")])
def test_a_command_that_is_asked_to_end_says_one_line_and_leaves_no_half_file(tmp_path, capsys, number, status, said):
    def write():
        with replacing(tmp_path / "table.md") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)

    (tmp_path / "table.md").write_text("whole")
    assert stopped_command(write, capsys) == (
        status, f"{said}: what is done is kept; type the same command again and it goes on\n")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_asked_while_an_error_is_told(capsys, monkeypatch):
    """A signal between two lines of the command's own end is no traceback."""
    real = errors._stop

    def stop(status, line):
        if status == 2:
            ask()
        real(status, line)

    def fails():
        raise UserError("a mistake")

    monkeypatch.setattr(errors, "_stop", stop)
    assert stopped_command(fails, capsys)[0] == 143


@pytest.mark.parametrize(("pause", "status"), [(0.0, 143), (1.3, 143)])
def test_a_second_signal_ends_at_once_but_not_one_that_comes_with_the_first(pause, status):
    """make passes on what its whole process group has got."""
    code = ("import os, signal, sys, time\nfrom common.errors import exit_cleanly\nfrom common.signals import held\n"
            "def main():\n    with held():\n        os.kill(os.getpid(), signal.SIGTERM)\n"
            "        time.sleep(float(sys.argv[1]))\n        os.kill(os.getpid(), signal.SIGTERM)\n"
            "        print('whole', flush=True)\n"
            "exit_cleanly(main)\n")
    ended = subprocess.run((sys.executable, "-c", code, str(pause)), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == status
    assert (ended.stdout, ended.stderr.count("\n")) == (("whole\n", 1) if pause == 0.0 else ("", 0))


def test_a_block_that_is_held_ends_first():
    done = []
    with pytest.raises(signals.Stopped, match="SIGTERM"), signals.caught():
        with signals.held():
            with signals.held():
                ask()
            done.append("inner")
        pytest.fail("the signal was forgotten")
    assert done == ["inner"]


def test_a_command_that_runs_another_passes_the_signal_on_and_waits_for_it(tmp_path):
    inner = ("import os, signal, sys, time\nfrom common.errors import exit_cleanly\nfrom common.signals import held\n"
             "def main():\n    with held():\n        os.kill(os.getppid(), signal.SIGTERM)\n        time.sleep(0.5)\n"
             "        open(sys.argv[1], 'w').write('kept')\n    time.sleep(600)\n"
             "exit_cleanly(main)\n")
    outer = ("import sys\nfrom common.errors import exit_cleanly\nfrom common.signals import status_of\n"
             "exit_cleanly(lambda: status_of([sys.executable, '-c', *sys.argv[1:]]))\n")
    ended = subprocess.run((sys.executable, "-c", outer, inner, tmp_path / "step"), cwd=ROOT, capture_output=True,
                           text=True)
    assert ended.returncode == 143 and ended.stderr.count("stopped by SIGTERM") == 2
    assert (tmp_path / "step").read_text() == "kept"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_lost_in_a_finaliser_is_raised_later():
    class Last:
        def __del__(self):
            ask()

    with pytest.raises(signals.Stopped), signals.caught():
        Last()                                                    # python prints that it ignores what was raised
        with signals.held():
            pass
        pytest.fail("the signal was forgotten")


def test_while_a_signal_unwinds_it_is_not_raised_again():
    done = []
    with signals.caught():
        try:
            ask()
        except signals.Stopped:
            with signals.held():
                done.append("kept")
            done.append("behind")
    assert done == ["kept", "behind"]


def test_an_error_in_a_held_block_is_what_is_told():
    with pytest.raises(UserError, match="mistake"), signals.caught(), signals.held():
        ask()
        raise UserError("mistake")


def test_of_several_processes_nothing_is_held():
    with signals.caught(), pytest.raises(signals.Stopped):
        signals.among_others()
        with signals.held():
            ask()
            pytest.fail("waited for a step's end")


def test_handlers_and_what_was_ignored_are_as_before():
    before = [signal.getsignal(number) for number in signals.CAUGHT]
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.caught():
            ask()
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    assert [signal.getsignal(number) for number in signals.CAUGHT] == before


def test_no_signal_leaves_no_trace(tmp_path):
    with signals.caught():
        whole(tmp_path)
    assert "running" not in checkpoint.load_tree(tmp_path / "weights/resume.pt")
