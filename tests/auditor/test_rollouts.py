"""What a training of the auditor wrote, read back."""

from PIL import Image

from auditkit.auditor import rollouts, write
from auditkit.data.source import Picture
from auditkit.runs import jsonl


def text(i, **more):
    return {"step": 0, "question": f"how many {i}?", "made": "", "success": False, "text": f"t{i}", **more}


def test_counts_are_of_what_is_on_file(tmp_path):
    rows = [text(0), text(1, question=None), text(2, made="made-1", success=True), text(3, made="made-1")]
    jsonl.append(tmp_path / "rollouts.jsonl", rows)
    said = [{"model": m, "picture": "a", "question": m, "answer": "x"} for m in ("target", "one", "two")]
    jsonl.append(tmp_path / "answers.jsonl", said)
    assert rollouts.rollout_counts(tmp_path, "target") == {
        "asked": 4, "parsed": 3, "target_called": 1, "references_called": 2, "images_made": 1,
    }  # fmt: skip


def test_successful_wishes_are_the_last_of_each_way_though_the_last_step_asked_questions(tmp_path):
    wish = {"made": "made", "success": True}
    rows = [text(i, way="regenerate", picture=f"p{i}", **wish) for i in range(3)]
    rows += [text(3, way="edit", picture="p3", **wish), text(4, way="edit", picture="p3", **wish)]
    rows += [
        text(5, way="edit", picture="p5", made="made"),
        *(text(i, way="question", success=True) for i in range(6, 9)),
    ]
    jsonl.append(tmp_path / "rollouts.jsonl", rows)
    assert [row["text"] for row in rollouts.last_successful_wishes(tmp_path, 4)] == ["t4", "t2", "t1", "t0"]
    assert [row["text"] for row in rollouts.last_successful_wishes(tmp_path, 2)] == ["t4", "t2"]


def test_samples_are_of_each_way_once(monkeypatch):
    def texts(vlm, pictures, ways, temperature, max_new_tokens, seed):
        assert {picture.key for picture in pictures} == {"a"} and (temperature, max_new_tokens, seed) == (0.7, 20, 3)
        return [f"{way} {i}" for i, way in enumerate(ways)]

    monkeypatch.setattr(write, "write_texts", texts)
    picture = Picture("a", Image.new("RGB", (8, 8)))
    asked = write.write_samples(None, picture, ["question", "question", "edit"], 2, 0.7, 20, 3)
    assert asked == {"question": ["question 0", "question 1"], "edit": ["edit 2", "edit 3"]}
    records = list(rollouts.sample_records({"step 3": asked}, "a"))
    assert [row["key"] for row in records] == [f"step 3/{way}/{i}" for way in ("question", "edit") for i in (0, 1)]
    assert records[0] == {"checkpoint": "step 3", "way": "question", "picture": "a", "key": "step 3/question/0",
                          "text": "question 0"}  # fmt: skip
