"""Which of the three decides that two answers mean the same: their text, embeddings, or a model that is asked."""

from pathlib import Path

from auditkit.consensus.embeddings import decide_by_embedding
from auditkit.consensus.same import Same
from auditkit.params import Params


def choose_same(p: Params, folder: Path | None = None) -> Same:
    """The test for sameness that a parameter file names: "text", "embedding", or the spec of a model to ask.

    Args:
        p: uses same, and for a model device, dtype, batch_size and memory.
        folder: where a model's verdicts are kept (judged.jsonl): a pair that is on file is not asked again, and where
            all are, the model is not even loaded.

    Raises AuditError when what it needs is not installed.
    """
    if p.same == "text":
        return Same()
    if p.same == "embedding":
        return Same(decide_by_embedding())
    from auditkit.consensus.llm_judge import LLMJudge
    from auditkit.models.language import language_model_loader

    return Same(LLMJudge(p.same, language_model_loader(p), folder))
