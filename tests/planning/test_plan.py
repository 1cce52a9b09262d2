"""`auditkit plan`: what a parameter file takes, before any download, and what to change where it does not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.params import FIELDS, load_params
from auditkit.planning import memory, plan, sizes
from auditkit.planning.calls import (
    answer_operations,
    at_hand,
    model_calls,
    questions_an_image,
    read_bench,
    stage_seconds,
)
from auditkit.planning.placement import memory_advice, memory_needs, placed_models
from auditkit.planning.plan import Machine, refuse_misfit

FILES = ("params/paligemma2_3b.yaml", "params/gemma3_4b.yaml")
# counts in the manifests of a demo run (params/demo.yaml, seed 0): stage -> [target's calls, references' together]
DEMO = {
    "01_models": (640, 1920),
    "02_disagreement": (1000, 3000),
    "03_counterfactual": (231, 960),
    "04_auditor": (3369, 13194),
    "05_audit": (2726, 9411),
    "07_rectify": (12200, 0),
    "08_benchmark": (13891, 0),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, repository):
    def down(*_, **__):
        raise ConnectionError("no network")

    for question in ("model_info", "dataset_info"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{question}", down)
    monkeypatch.chdir(repository)
    sizes.look_up.cache_clear()


@pytest.fixture
def bench(monkeypatch):
    def rates(**found):
        monkeypatch.setattr(plan, "read_bench", lambda: found)

    rates()
    return rates


def told(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("file", FILES)
def test_the_papers_files_are_complete_and_say_what_the_paper_says(file, repository):
    p = load_params(repository / file)
    assert (p.grpo_steps, p.grpo_images * p.group_size) == (1000, 256)
    assert (p.grpo_learning_rate, p.grpo_warmup, p.grpo_last_learning_rate) == (3e-6, 0.1, 1e-6)
    assert p.auditor == "google/gemma-3-4b-it"
    text = (repository / file).read_text(encoding="utf-8")
    assert "black-forest-labs/FLUX.1-dev" in text and "black-forest-labs/FLUX.1-Kontext-dev" in text
    given = {line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()}
    assert given <= set(FIELDS) and "params_file" in given


@pytest.mark.parametrize("file", FILES)
def test_the_papers_files_fit_one_gpu_of_80_gb_and_not_less(file, capsys, bench):
    code, out, err = told(capsys, file, "--gpu", "80")
    assert code == 0, err
    assert "They must take turns (memory: turns)" in out
    assert "To download: 15" in out and "No time is estimated" in out
    assert "writing 256 questions at once" in out and "learning, 8 questions at once" in out
    code, out, err = told(capsys, file, "--gpu", "8")
    assert code == 2 and "largest piece of work" in out  # the table comes first, then why it is refused
    assert err.startswith("auditkit: 04_auditor takes 7") and "no setting makes it fit" in err


def test_the_miniature_fits_anywhere(capsys, bench):
    code, out, err = told(capsys, "params/demo.yaml", "--gpu", "8")
    assert code == 0, err
    assert "All models fit together" in out and "To download: nothing" in out
    assert "0.92 M" in out  # the target


@pytest.mark.parametrize(
    ("gpu", "changed", "words"),
    [
        (80, {"memory": "together"}, "it fits with memory: turns."),
        (80, {"batch_size": 64}, "it fits with batch_size: 16."),
        (60, {}, "references: [google/gemma-3-12b-it?bits=4, google/gemma-3-27b-it?bits=4]"),
    ],
)
def test_a_refusal_says_what_to_change_and_is_right(gpu, changed, words):
    p = load_params("params/gemma3_4b.yaml", **changed)
    here = Machine("GPU", gpu * 1e9, 1, True)
    with pytest.raises(AuditError) as refused:
        refuse_misfit(p, here)
    assert words in str(refused.value)
    advice = memory_advice(p, True, here.limit)
    refuse_misfit(load_params("params/gemma3_4b.yaml", **{**changed, **advice}), here)


def test_more_memory_is_never_worse():
    p = load_params("params/gemma3_4b.yaml", memory="together")
    found = [memory_advice(p, True, gb * 1e9) is not None for gb in range(4, 204, 20)]
    assert found == sorted(found) and found[-1] and not found[0]


def test_a_model_on_another_gpu_is_counted_there():
    big = "google/gemma-3-27b-it?device=cuda:1"
    p = load_params("params/gemma3_4b.yaml", references=[big], peer="", memory="together")
    needs = {(need.stage, need.device): need for need in memory_needs(p, placed_models(p, True))}
    assert needs["05_audit", "cuda:1"].together > 54.8e9
    assert needs["05_audit", ""].together < needs["05_audit", "cuda:1"].together + 60e9
    with pytest.raises(AuditError, match="there is no cuda:1 among 1 GPU"):
        refuse_misfit(p, Machine("GPU", 80e9, 1, True))


def test_four_bits_take_a_good_quarter_and_stay_on_the_gpu():
    p = load_params("params/gemma3_4b.yaml")
    small = load_params("params/gemma3_4b.yaml", references=[f"{text}?bits=4" for text in p.references])
    full, four = (placed_models(q, True) for q in (p, small))
    weights = {m.text: m.weights for m in (*full, *four)}
    assert 0.25 < weights["google/gemma-3-27b-it?bits=4"] / weights["google/gemma-3-27b-it"] < 0.35
    parked = {need.stage: need.parked for need in memory_needs(small, four)}
    assert parked["03_counterfactual"] == 2 * weights["google/gemma-3-4b-it"]  # auditor and target wait


def test_smaller_pieces_take_less():
    p = load_params("params/gemma3_4b.yaml", memory="together")

    def of(stage, **changed):
        q = load_params("params/gemma3_4b.yaml", **{"memory": "together", "grpo_micro_batch": 0, **changed})
        return next(n.together for n in memory_needs(q, placed_models(q, True)) if n.stage == stage)

    assert of("04_auditor", grpo_micro_batch=4) < of("04_auditor")
    assert of("05_audit", batch_size=2) < of("05_audit", batch_size=p.batch_size)
    assert of("07_rectify", rectify_lora_rank=0) > of("07_rectify", rectify_lora_rank=64)  # all of the text part
    assert of("07_rectify", rectify_micro_batch=1) < of("07_rectify", rectify_micro_batch=32)


def test_an_audit_holds_the_untrained_auditor_and_one_checkpoint_however_many_there_are():
    p = load_params("params/gemma3_4b.yaml")
    cast = placed_models(p, True)
    weights = next(m.weights for m in cast if "auditor" in m.roles)

    def audited(checkpoints):
        found = memory_needs(SimpleNamespace(**vars(p) | {"grpo_checkpoints": checkpoints}), cast)
        return next(need for need in found if need.stage == "05_audit")

    assert audited(1) == audited(2) == audited(5)
    for how in ("together", "parked"):
        assert getattr(audited(1), how) - getattr(audited(0), how) == pytest.approx(weights)  # 0: as `bench` audits


def test_nobody_knows_a_model_and_the_plan_says_so(capsys, bench):
    code, out, _ = told(capsys, "params/gemma3_4b.yaml", "--gpu", "80", "--set", "target=org/unheard-of")
    assert code == 0
    assert "Nothing is known here of org/unheard-of" in out and "name a folder" in out
    assert "but for org/unheard-of." in out
    assert out.rstrip().endswith("This plan is without org/unheard-of, of which nothing is known here.")


def test_a_model_behind_an_address_takes_nothing(capsys, bench):
    address = "references=['http://localhost:8000/v1#org/large']"
    code, out, _ = told(capsys, "params/gemma3_4b.yaml", "--gpu", "80", "--set", address, "--set", "peer=")
    assert code == 0 and "behind an address" in out and "27b" not in out


def test_the_pictures_are_downloaded_too(capsys, bench, monkeypatch):
    assert (
        "How large the data set HuggingFaceM4/the_cauldron is cannot be told"
        in told(capsys, FILES[0], "--gpu", "80")[1]
    )

    def info(self, place, **_):
        sizes_of = {
            "vqav2/train-0.parquet": 3e9,
            "vqav2/train-1.parquet": 4e9,
            "aokvqa/train.parquet": 9e9,
            "README.md": 1,
        }
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=int(s)) for n, s in sizes_of.items()])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    assert "at most 7.0 GB of HuggingFaceM4/the_cauldron" in told(capsys, FILES[0], "--gpu", "80")[1]


def test_pictures_in_a_folder_named_from_home_are_not_sought_on_the_hub(capsys, bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = told(capsys, "params/smoke.yaml", "--set", "images=hub:~")
    assert code == 0 and "the hub does not answer" not in out


def test_a_configuration_of_which_no_model_can_be_made_is_one_sentence(capsys, bench, tmp_path):
    folder = shutil.copytree(shipped.WEIGHTS / "target", tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": "none"}))
    code, _, err = told(capsys, "params/smoke.yaml", "--set", f"target={folder}")
    assert code == 2 and "its configuration makes no model" in err and err.count("\n") == 1


def test_eight_questions_an_image_take_gemma3_a_quarter_of_the_operations(capsys, bench):
    p = load_params("params/gemma3_4b.yaml")
    cast = {role: model for model in placed_models(p, True) for role in model.roles}
    one, eight = (answer_operations(cast["auditor"], p, n) for n in (1, 8))
    assert 8e12 < one < 8.5e12 and eight <= one / 4
    long = replace(p, max_question_tokens=1000)  # longer than the window of its local layers
    assert answer_operations(cast["auditor"], long, 8) > 0.5 * answer_operations(cast["auditor"], long)
    out = told(capsys, "params/gemma3_4b.yaml", "--gpu", "80", "--set", "max_question_tokens=48")[1]
    assert "gemma-3-4b-it" in out and "04_auditor, rollouts 8, 04_auditor, answers and plausibility 8" in out


def test_models_that_share_the_image_alone_save_its_encoding_and_the_plan_says_why(capsys, bench):
    out = told(capsys, "params/paligemma2_3b.yaml", "--gpu", "80")[1]
    assert out.count("only the image's encoding is shared, for it reads a prompt in both directions") == 3
    size = next(m for m in placed_models(load_params("params/paligemma2_3b.yaml"), True) if "target" in m.roles).size
    saved = memory.read_operations(size, 8, 1100) - memory.read_operations(size, 8, 1100, 8, 1024)
    assert saved == pytest.approx(7 * memory.see_operations(size))
    assert "height and width" in told(capsys, "params/gpu_80gb.yaml", "--gpu", "80")[1]
    long = told(capsys, "params/gemma3_4b.yaml", "--gpu", "80", "--set", "max_question_tokens=1000")[1]
    assert "some of its layers see 1024 tokens, fewer than the text has" in long


def test_how_many_questions_an_image_gets_follows_from_the_file():
    p = load_params("params/gemma3_4b.yaml")
    assert questions_an_image(replace(p, group_size=2, blind_candidates=1)) == {
        "04_auditor, rollouts": 2,
        "04_auditor, answers and plausibility": 2,
    }
    gated = questions_an_image(replace(p, batch_size=4, gates=["reproduces", "visual"], repeats=3))
    assert gated["04_auditor, answers and plausibility"] == 4 and gated["04_auditor, rollouts"] == 8
    assert gated["05_audit, asked again"] == 3 and gated["05_audit, asked about other pictures"] == 4


def test_impossible_machines_are_one_sentence(capsys):
    assert told(capsys, "params/demo.yaml", "--gpu", "0")[2].startswith("auditkit: --gpu is the memory of one GPU")
    assert told(capsys, "params/demo.yaml", "--gpu", "80", "--gpus", "0")[0] == 2


def test_calls_are_those_of_a_real_demo():
    p = load_params("params/demo.yaml")
    found = {row["stage"]: row for row in model_calls(*at_hand(p))}
    for stage, (target, references) in DEMO.items():
        row = found[stage]
        assert row["target"] >= target and row["references"] * 3 >= references, stage
    for stage in ("01_models", "02_disagreement"):  # nothing is malformed or asked twice there
        assert (found[stage]["target"], found[stage]["references"] * 3) == DEMO[stage]
    assert found["04_auditor"]["trained"] == 5760 == p.grpo_steps * p.grpo_images * p.group_size
    assert found["07_rectify"]["target"] == DEMO["07_rectify"][0]
    assert found["08_benchmark"]["target"] - DEMO["08_benchmark"][0] < p.baseline_images


def test_runs_made_here_asked_no_more_than_planned(repository):
    """Against every finished run in outputs/ that was made with a file in params/."""
    seen = 0
    for manifest in repository.glob("outputs/*/0[1-8]_*/manifest.json"):
        made = json.loads(manifest.read_text(encoding="utf-8"))
        given = {key: value for key, value in made["parameters"].items() if key in FIELDS}
        if made["status"] != "done" or not Path(given["params_file"]).is_file() or given["images"] != "miniature":
            continue
        p = load_params(given.pop("params_file"), **given)
        planned = {row["stage"]: row for row in model_calls(*at_hand(p))}
        if made["stage"] in planned and "target_called" in made["counts"]:
            row, counts, seen = planned[made["stage"]], made["counts"], seen + 1
            assert counts["target_called"] <= row["target"], manifest
            assert counts.get("references_called", 0) <= row["references"] * len(p.references), manifest
    if not seen:
        pytest.skip("outputs/ holds no finished run of the miniature: make demo makes one")


def test_time_comes_from_measured_rates_alone(bench, capsys):
    p = load_params("params/paligemma2_3b.yaml", ways=["question"], generator="", editor="")
    cast = placed_models(p, True)
    kinds = ("paligemma2-3b-448", "paligemma2-10b-448", "paligemma2-28b-448?batch_size=8")
    answers = {kind: {"per_second": rate} for kind, rate in zip(kinds, (100.0, 50.0, 20.0), strict=True)}
    parts = {"generation": 8.0, "plausibility": 2.0, "loss": 4.0, "backward": 8.0, "rest": 4.0, "answers": 99.0}
    rates = {"answers": answers, "step": {"auditor": "gemma3-4b", "rows": 256, "seconds": parts}, "device": "a GPU"}
    found = stage_seconds(p, cast, None, rates)
    assert found["02_disagreement"] == pytest.approx(2000 * (1 / 100 + 1 / 50 + 1 / 20 + 10 / 256))
    trained = 256_000 * (1 / 100 + 1 / 50 + 1 / 20 + 16 / 256)
    assert found["04_auditor"] == pytest.approx(trained + 256_400 * 10 / 256)
    assert found["07_rectify"] is None  # no rate of the target's training was measured
    shared = {
        kind: row | {"by_image": {"questions": 8, "shared": {"per_second": 400.0}}} for kind, row in answers.items()
    }
    quicker = stage_seconds(p, cast, None, rates | {"answers": shared})
    assert quicker["02_disagreement"] == found["02_disagreement"]  # one question an image
    assert quicker["04_auditor"] == pytest.approx(256_000 * (3 / 400 + 16 / 256) + 256_400 * 10 / 256)
    bench(**rates)
    out = told(capsys, "params/paligemma2_3b.yaml", "--gpu", "80")[1]
    assert "unmeasured" in out and "measured on a GPU" in out
    assert set(stage_seconds(p, cast, None, {}).values()) == {None, 0}  # 0: no picture is made


def test_a_toy_benchmark_gives_no_rates(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_bench() == {}
    file = tmp_path / "outputs" / "bench.json"
    file.write_text('{"tiny": true, "answers": {"gemma3-4b": {"per_second": 9}}}')
    assert read_bench() == {}
    file.write_text('{"tiny": false, "answers": {}}')
    assert read_bench() == {"tiny": False, "answers": {}}
    file.write_text("{")
    with pytest.raises(AuditError, match="bench.json is no JSON"):
        read_bench()
