"""The paper's sixteen benchmarks: what it reports for each, and where lmms-eval has it.

Eight were measured on PaliGemma2 at 448 pixels, eight on Gemma3. Higher is better in all. A task of lmms-eval is the
nearest kin of what the paper measured, not the same measurement: compare before with after, and read the paper's
columns for the size of the gain.

PaliGemma2: the paper's figures of 3B, 10B and 28B are, digit for digit, those of Table 13 of the PaliGemma2 report
(arXiv 2412.03555), and that tells which splits they are of. They are means over models fine-tuned on each benchmark's
own training set and asked in PaliGemma's short prompts, so a checkpoint that was only pre-trained scores far below. The
measures of RefCOCO and COCOCap are those of the transfer configurations in google-research/big_vision.

Gemma3: the paper does not say which split, prompt or scorer it used.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One row of the paper's two tables, and the task of lmms-eval that comes nearest."""

    title: str  # as in the paper
    base: float  # PaliGemma2-3B or Gemma3-4B
    audited: float  # the same after AuditDM
    larger: float  # PaliGemma2-10B or Gemma3-12B
    largest: float  # PaliGemma2-28B or Gemma3-27B
    task: str  # of lmms-eval
    metric: str  # the one of the task's metrics that goes into the table
    scale: float = 100.0  # from lmms-eval's unit to the paper's
    note: str = ""  # how the task departs from what the name promises


BENCHMARKS = {  # the name one types -> the benchmark
    # PaliGemma2, 448 pixels
    "vqav2": Benchmark("VQAv2", 84.8, 86.7, 85.8, 85.8, "vqav2_val", "exact_match",
        note="the validation split; the paper's is the last part of it, PaliGemma2's minival"),
    "gqa": Benchmark("GQA", 68.1, 71.1, 68.3, 68.3, "gqa", "exact_match", note="testdev, balanced"),
    "okvqa": Benchmark("OK-VQA", 64.1, 69.2, 68.6, 70.6, "ok_vqa_val2014", "exact_match"),
    "ai2d": Benchmark("AI2D", 76.0, 85.3, 84.4, 84.6, "ai2d", "exact_match"),
    "docvqa": Benchmark("DocVQA", 73.6, 77.5, 76.6, 76.1, "docvqa_val", "anls", note="validation, as in the paper"),
    "chartqa": Benchmark("ChartQA", 54.0, 63.8, 66.4, 61.3, "chartqa", "relaxed_human_split",
        note="the questions that people wrote, as in the paper"),
    "refcoco": Benchmark("RefCOCO", 76.3, 77.8, 78.2, 77.3, "refcoco_bbox_rec_val", "refcoco_IoU",
        note="mean IoU of boxes, written as [x, y, x, y] from 0 to 1, where the paper's is of masks; a model that "
        "answers in location tokens, as PaliGemma does, is not understood and scores 0"),
    "cococap": Benchmark("COCOCap", 143.4, 145.1, 145.0, 145.2, "coco_karpathy_val", "coco_CIDEr",
        note="CIDEr on the Karpathy validation split, as in the paper, there with two beams; its scorer needs Java"),
    # Gemma3
    "mmbench": Benchmark("MMBench-v1.1", 67.6, 75.0, 73.8, 78.3, "mmbench_en_dev_static", "gpt_eval_score", 1.0,
        note="English dev; lmms-eval does not say that its data are v1.1; letters are read by rule, without GPT"),
    "mmtbench": Benchmark("MMTBench", 53.2, 58.9, 58.5, 59.2, "mmt_val", "accuracy", 1.0,
        note="the validation split, questions on one picture"),
    "seed": Benchmark("Seed-IMG", 65.7, 72.9, 70.6, 73.2, "seedbench", "seed_image",
        note="lmms-eval asks the questions on videos, too, as several pictures, and counts them apart"),
    "mme": Benchmark("MME", 1376.0, 1450.3, 1517.3, 1526.6, "mme", "mme_perception_score", 1.0,
        note="perception, of 2,000 points"),
    "mmmu": Benchmark("MMMU", 39.6, 45.2, 44.8, 49.7, "mmmu_val", "mmmu_acc",
        note="the validation split; several pictures of a question are put side by side"),
    "mmstar": Benchmark("MMStar", 46.1, 52.4, 55.7, 58.7, "mmstar", "average", note="the mean over its categories"),
    "realworldqa": Benchmark("RealWorldQA", 54.5, 61.4, 58.3, 62.5, "realworldqa", "exact_match"),
    "pope": Benchmark("POPE", 85.1, 85.5, 86.0, 85.2, "pope", "pope_f1_score",
        note="F1; the paper does not say whether it means F1 or accuracy"),
}  # fmt: skip
