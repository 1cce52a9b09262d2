"""What notebooks 07 and 08 will ask that no training changes: asked while the auditor still learns.

The answers go into the stage's own answers.jsonl, by the functions that the notebook calls itself, which finds them
there: it asks the rest, and its records are the same. In one case there are more answers than without: where an audit
finds nothing, 07 would have asked nothing.
"""

from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.models.load import model_loader
from auditkit.params import Params
from auditkit.repair.before_after import evaluate_all, evaluate_tasks_aside
from auditkit.repair.finetune import why_not_trainable
from auditkit.repair.provenance import draw_originals
from auditkit.repair.training_set import ask_originals
from auditkit.runs.folder import Stage, open_stage

REPAIR, BENCHMARK = "07_rectify", "08_benchmark"


def ask_ahead(p: Params, stage: str) -> None:
    """Ask what a stage will ask whatever the auditor learns, and leave the stage for its notebook to go on.

    Args:
        p: the run's parameters.
        stage: "07_rectify", of whose originals the target's answers are asked, or "08_benchmark", of whose held-out
            examples and tasks those of the target before its repair and of the peer.

    Raises AuditError for another stage, and as `open_stage` does.
    """
    ask = {REPAIR: _ask_originals, BENCHMARK: _ask_benchmarks}.get(stage)
    if ask is None:
        raise AuditError(f"No question of {stage} can be asked ahead, only those of {REPAIR} and {BENCHMARK}.")
    run = open_stage(p, stage)
    try:
        ask(p, run)
    finally:
        run.leave()


def _ask_originals(p: Params, run: Stage) -> None:
    if p.route == "labeled" or why_not_trainable(p.target):
        return  # then the originals are learnt unasked, or nothing is
    originals = draw_originals(load_images(p.images), p)
    if originals:
        target = model_loader(p)(p.target, turns=False)
        ask_originals(target, originals, AnswerBook(run.path("answers.jsonl")), p.max_answer_tokens)


def _ask_benchmarks(p: Params, run: Stage) -> None:
    source, load = load_images(p.images), model_loader(p)
    asked_of = load_images(p.benchmark_images) if p.benchmark_images else source
    models = {"before": load(p.target)} | ({"peer": load(p.peer)} if p.peer else {})
    book = AnswerBook(run.path("answers.jsonl"))
    skills_book = AnswerBook(run.path("skills.jsonl")) if p.benchmark_images else book
    evaluate_all(models, asked_of.benchmarks(p.benchmark_examples), skills_book, p.max_answer_tokens)
    evaluate_tasks_aside(models, source.tasks(max(1, p.benchmark_examples // 8)), book)
