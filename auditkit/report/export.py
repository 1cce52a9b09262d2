"""A run's findings as a data set that others can load, and the repaired adapter as a model, each with its card.

    auditkit export demo --out findings_of_demo                          # writes, pushes nothing
    auditkit export demo --out findings_of_demo --push me/demo-findings  # and to two private repositories of the hub

    DIR/findings/README.md        the data-set card
                 metadata.jsonl   one finding a line (`finding_rows` says what is in it)
                 images/KEY.png   the picture the target failed on, just as it was shown to it (`picture_file`)
    DIR/adapter/                  what notebook 07 learnt, if anything, and the model card

`load_dataset("imagefolder", data_dir="DIR/findings")` reads the findings back. A finding's key is that of its probe in
the run's 05_audit/records.jsonl, and gives its picture its name, so each leads to the other. Findings that a person
rejected stay at home; those they relabelled carry their answer.

The pictures, questions and answers are made public by whoever pushes or passes on the folder: so is nothing else. Paths
of this machine and addresses of servers are replaced by names.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import yaml

from auditkit import specs
from auditkit.counterfactual.store import with_counterfactuals
from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.findings import review
from auditkit.params import project_root
from auditkit.report.summary import FinishedStage, read_run, summarise_run
from auditkit.runs import jsonl
from auditkit.runs.folder import STAGES, notebook_of, shown_path
from auditkit.runs.probe import only_findings
from auditkit.text import SPACE, for_a_person, interval, percent, short_error

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TEMPLATES = Path(__file__).parent / "templates"
TAGS = ["auditkit", "auditdm"]


def export_run(run_folder: Path, out: Path, adapter_of: str = "") -> dict[str, int]:
    """Write a run's findings, and its adapter if there is one, into a new folder, all or nothing.

    Args:
        run_folder: outputs/NAME, with notebook 06 done.
        out: the folder, which must not be there yet, or be empty.
        adapter_of: the data set's id on the hub, for the model card, if it is to be pushed.

    Returns {"findings", "rejected", "relabelled", "adapter": 0 or 1}. Raises AuditError for a run that is not there or
    has nothing to export, and for a folder that holds something.
    """
    run_folder, out = Path(run_folder), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AuditError(f"--out: {out} is there and not empty; name a new folder, nothing is overwritten.")
    stages = _stages(run_folder)
    audit, findings, repair = stages["05_audit"], stages["06_findings"], stages.get("07_rectify")
    settings, scored = audit.manifest["parameters"], audit.records("scored.jsonl")
    decided = review.decisions(findings.folder, scored)
    found = finding_rows(scored, decided, findings.json("types.json") or [])
    if not found:
        raise AuditError(f"{shown_path(run_folder)} has no findings to export.")
    source = with_counterfactuals(load_images(settings["images"]), audit.folder)

    part = out.with_name(out.name + ".part")  # renamed when it is whole
    shutil.rmtree(part, ignore_errors=True)
    (part / "findings" / "images").mkdir(parents=True)
    for row in found:
        source.picture(row["picture"]).image.save(part / "findings" / row["file_name"])
    jsonl.append(part / "findings" / "metadata.jsonl", found)
    changed = review.changes(scored, decided)
    told = {"findings": len(found), "rejected": sum(answer is None for answer in changed.values())}
    told["relabelled"] = sum(row["answer_by"] == "person" for row in found)
    facts = _facts(run_folder, stages, found, told)
    (part / "findings" / "README.md").write_text(_findings_card(facts), encoding="utf-8")
    told["adapter"] = int(repair is not None and (repair.folder / "adapter").is_dir())
    if repair and told["adapter"]:
        trained = repair.folder / "adapter"
        _adapter(trained, part / "adapter", settings["target"])
        whole = not (trained / "adapter_config.json").is_file()  # rectify_lora_rank: 0
        card = _adapter_card(facts | {"learnt_from": repair.metrics, "dataset": adapter_of, "whole": whole})
        (part / "adapter" / "README.md").write_text(card, encoding="utf-8")
    if out.is_dir():
        out.rmdir()
    part.replace(out)
    return told


def finding_rows(scored: Sequence[dict], decided: Mapping[str, dict], types: Sequence[Mapping]) -> list[dict]:
    """The lines of metadata.jsonl: one for each finding that no person rejected.

    Args:
        scored: the records of the audit (score_probes).
        decided: what a person said (review.decisions).
        types: as in types.json.

    Each: {"file_name", "key", "question", "answer": the consensus or the person's, "answer_by": consensus | person,
    "review": accepted | relabelled | not reviewed, "consensus", "target", "references": {name: answer}, "way",
    "pairing", "checkpoint", "failure_type", "picture": its key, "base": key of the picture it was made from, "made":
    the caption or command, "outcome"}; a text is "" where there is none.
    """
    type_of = {key: kind["name"] for kind in types for key in kind["keys"]}
    words = {"accept": "accepted", "relabel": "relabelled"}
    found = []
    for row in review.corrected(only_findings(scored), review.changes(scored, decided)):
        by_person = "consensus_by_references" in row
        said = {"answer": row["consensus"], "answer_by": "person" if by_person else "consensus"}
        said["review"] = words.get(decided.get(row["key"], {}).get("decision", ""), "not reviewed")
        said |= {"consensus": row["consensus_by_references"] if by_person else row["consensus"]}
        said |= {"target": row["target"], "references": row["references"]}
        made = {name: row.get(name) or "" for name in ("way", "pairing", "checkpoint", "picture", "base", "made")}
        asked = {"file_name": picture_file(row["key"]), "key": row["key"], "question": row["question"]}
        found.append({**asked, **said, **made, "failure_type": type_of.get(row["key"], ""), "outcome": row["outcome"]})
    names = Counter(row["file_name"] for row in found)
    if twice := [name for name, times in names.items() if times > 1]:
        raise AuditError(f"two findings would both be {twice[0]}: their keys differ only in signs a file cannot have.")
    return found


def picture_file(key: str) -> str:
    """Where a finding's picture lies in the data set, named after the key of its probe.

    The plus sign stays: it alone tells a further candidate of a checkpoint from its first question.

    >>> picture_file("step 90/00583/own"), picture_file("untrained/+00420"), picture_file("untrained/00420")
    ('images/step-90-00583-own.png', 'images/untrained-+00420.png', 'images/untrained-00420.png')
    """
    return f"images/{re.sub(r'[^A-Za-z0-9._+-]+', '-', key)}.png"


def push_export(out: Path, name: str) -> list[str]:
    """Upload what `export_run` wrote to private repositories, NAME and NAME-adapter, and return their addresses.

    Raises AuditError for a repository that is there and public, and where the hub cannot be reached or refuses.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api, addresses = huggingface_hub.HfApi(), []
    for part, kind, repository in (("findings", "dataset", name), ("adapter", "model", f"{name}-adapter")):
        folder = out / part
        if not folder.is_dir():
            continue
        try:
            address = api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
            if not api.repo_info(repository, repo_type=kind).private:  # one that was there before
                raise AuditError(
                    f"--push: {repository} is there and public; make it private first, or name another. The export is "
                    f"in {out}."
                )
            api.upload_folder(repo_id=repository, repo_type=kind, folder_path=folder, commit_message="auditkit export")
        except (errors.HTTPError, OSError, ValueError) as error:
            raise AuditError(
                f"--push: {repository} could not be written ({short_error(error)}). The export is whole in {out}: log "
                f"in with `hf auth login`, then `hf upload {repository} {folder} --repo-type {kind} --private`."
            ) from error
        addresses.append(str(address))
    return addresses


def refuse_repository_name(name: str) -> None:
    """Raise AuditError for what is no repository's name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,80}", name):
        raise AuditError(f"--push: {name!r} is no repository of the hub; write OWNER/NAME.")


def _stages(run_folder: Path) -> dict[str, FinishedStage]:
    if not run_folder.is_dir():
        there = sorted(folder.name for folder in run_folder.parent.glob("*") if (folder / "05_audit").is_dir())
        raise AuditError(f"No run {run_folder.name}: outputs/ holds {', '.join(there) or 'no audit'}.")
    stages = read_run(run_folder)
    for name in ("05_audit", "06_findings"):
        if name not in stages:
            raise AuditError(f"{shown_path(run_folder / name)} is not done: run {notebook_of(name)} first.")
    return stages


def _adapter(trained: Path, out: Path, target: str) -> None:
    """Copy what was learnt, an adapter or whole weights; the folder in which this machine keeps the target becomes the
    target's name.
    """
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("README.md", "*.bin"))
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        config = out / name
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if key in settings:
            settings[key] = _base(target)
            config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# ---- the cards ------------------------------------------------------------------------------------------------------


def _facts(run_folder: Path, stages: Mapping[str, FinishedStage], found: Sequence[dict], told: dict) -> dict:
    """What both cards tell; whatever a model or a person wrote is made harmless first."""
    audit = stages["05_audit"].manifest
    settings = {name: audit["parameters"][name] for name in STAGES["05_audit"]}
    shown = {name: [_public(one) for one in value] if isinstance(value, list) else _public(value)
             for name, value in settings.items()}  # fmt: skip
    summary = summarise_run(run_folder.name, stages)
    return {
        "run": inline(run_folder.name),
        "audit": audit.get("id", ""),
        "told": told,
        "shown": {name: inline(value) for name, value in shown.items() if isinstance(value, str)},
        "references": [inline(one) for one in shown["references"]],
        "settings": yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).replace("```", "'''").strip(),
        "kinds": [(inline(kind), n) for kind, n in Counter(row["failure_type"] for row in found).most_common()],
        "ways": Counter(f"{row['way']}, {row['pairing']}" for row in found).most_common(),
        "summary": summary,
        "versions": summary["versions"],
        "base": _base(settings["target"]),
        "base_on_hub": _on_hub(settings["target"]),
    }


def _findings_card(facts: Mapping) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    size = next((words for most, words in SIZES if facts["told"]["findings"] < most), "n>1M")
    data = DatasetCardData(
        pretty_name=f"Findings of the audit {facts['run']}",
        task_categories=["visual-question-answering"],
        size_categories=[size],
        tags=TAGS,
        configs=[{"config_name": "default", "drop_labels": True, "data_files": [{"split": "train", "path": "**"}]}],
    )
    return _card(DatasetCard, data, "findings_card.md.j2", facts)


def _adapter_card(facts: Mapping) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=facts["base"] if facts["base_on_hub"] else None,  # the hub refuses a header with another base
        datasets=[facts["dataset"]] if facts["dataset"] else None,
        library_name="transformers" if facts["whole"] else "peft",
        pipeline_tag="image-text-to-text",
        tags=TAGS if facts["whole"] else [*TAGS, "lora"],
    )
    return _card(ModelCard, data, "adapter_card.md.j2", facts)


def _card(kind, data, template: str, facts: Mapping) -> str:
    cards = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    cards.filters |= {"percent": percent, "interval": interval, "inline": inline}
    body = cards.get_template(template).render(facts).replace(SPACE, " ").strip() + "\n"
    return str(kind.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body))


def inline(text: str) -> str:
    r"""A text that somebody wrote, so that Markdown shows it as it is and nothing in it comes alive.

    >>> print(inline("<b>two</b> | [x](http://a.org)\n# no"))
    \<b\>two\</b\> \| \[x\]\(http://a\.org\) \# no
    """
    return re.sub(r"([\\`*_{}\[\]()#+.!|<>~$&-])", r"\\\1", " ".join(for_a_person(text).split()))


def _base(target: str) -> str:
    return _public(specs.parse(target).place)


def _on_hub(target: str) -> bool:
    place = specs.parse(target).place
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not (project_root() / place).is_dir()


def _public(value):
    """A setting without what belongs to this machine: folders by their last name, servers by their model's."""
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        return specs.parse(value).model
    head, rest = ("hub:", value[4:]) if value.startswith("hub:") else ("", value)
    place, mark, options = rest.partition("?")
    path = Path(place).expanduser()
    return head + (path.name + mark + options if path.is_absolute() else rest)
