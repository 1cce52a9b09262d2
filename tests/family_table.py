"""The table of families in docs/models.md: what `auditkit check` finds of each family's tiny model (tiny.py).

`python tests/family_table.py` writes it anew, in about a minute; test_family_table.py holds the page to it.
"""

import math
import re
import sys
import tempfile
import warnings
from pathlib import Path

import tiny

from auditkit.errors import AuditError
from auditkit.planning.check import check_model

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families: python tests/family_table.py -->\n", "<!-- end of families -->\n"
PUBLISHED = {  # one that was published, of each family
    "paligemma2": "google/paligemma2-3b-mix-448",
    "gemma3": "google/gemma-3-4b-it",
    "gemma4": "google/gemma-4-E2B-it",
    "qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3_vl_moe": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "qwen3_5": "Qwen/Qwen3.5-0.8B",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "idefics2": "HuggingFaceM4/idefics2-8b",
    "idefics3": "HuggingFaceM4/Idefics3-8B-Llama3",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava_next": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_onevision": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "internvl": "OpenGVLab/InternVL3-1B-hf",
    "glm4v": "zai-org/GLM-4.1V-9B-Thinking",
    "glm46v": "zai-org/GLM-4.6V-Flash",
    "janus": "deepseek-community/Janus-Pro-1B",
    "deepseek_vl": "deepseek-community/deepseek-vl-1.3b-chat",
    "video_llama_3": "lkhl/VideoLLaMA3-2B-Image-HF",
    "aya_vision": "CohereLabs/aya-vision-8b",
    "mllama": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "ovis2": "thisisiron/Ovis2-1B-hf",
    "t5gemma2": "google/t5gemma-2-270m-270m",
    "pixtral": "mistral-community/pixtral-12b",
    "mistral3": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "lfm2_vl": "LiquidAI/LFM2-VL-1.6B",
    "cohere2_vision": "CohereLabs/command-a-vision-07-2025",
}
COLUMNS = {  # of the table -> what check does, all of which must be right
    "answers": {"answers", "content"},
    "scored": {"scores"},
    "audited as target": {"begins", "in a batch", "image and text"},
    "trained as auditor": {"GRPO step", "saved, loaded"},
    "repaired": {"repair step", "saved, loaded"},
}
OWN = ", by its own forward pass, "


def row(name: str) -> tuple[list[str], str]:
    """A family's cells behind its name, and in check's words what is not as of most families, "" for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, name)
        if name in tiny.REFUSED:
            tiny.settings(place, *tiny.REFUSED[name])
        else:
            tiny.save(name, place)
        try:
            with warnings.catch_warnings(action="ignore"):
                found = list(check_model(str(place), device="cpu"))
        except AuditError as error:
            return ["no"] * len(COLUMNS) + [""], _sentence(str(error))
    cells = ["yes" if _all_right(found, asked) else "no" for asked in COLUMNS.values()]
    said = {what: text for what, text, _ in found}
    step, why = said.get("GRPO step", ""), next((text for _, text, right in found if not right), "")
    if OWN in step:
        cells[3] += ", by its own pass"
        why = why or "trained by its own forward pass, " + step.split(OWN)[1]
    within = re.search(r"within ([\d.e-]+)", step)
    return [*cells, _bound(float(within[1])) if within else ""], _sentence(why)


def _all_right(found: list[tuple[str, str, bool]], asked: set[str]) -> bool:
    right = [(what, good) for what, _, good in found if what in asked]
    return {what for what, _ in right} == asked and all(good for _, good in right)


def _bound(off: float) -> str:
    """The next power of ten."""
    return f"1e{math.ceil(math.log10(off))}" if off else "0"


def _sentence(why: str) -> str:
    return re.sub(r'^"[^"]*": (a \w+ )?', "", why)


def table() -> str:
    """The whole table, and below it the sentences."""
    lines = [f"| family, such as | {' | '.join(COLUMNS)} | log-probabilities within |", "|---" * 7 + "|"]
    sentences = []
    for name, example in PUBLISHED.items():
        cells, why = row(name)
        lines.append(f"| `{name}`, {example} | {' | '.join(cells)} |")
        if why:
            sentences.append(f"- `{name}`: {why}")
    return "\n".join([*lines, "", *sentences]) + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"{PAGE}: without its marks {BEGIN.strip()} and {END.strip()}")
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")
