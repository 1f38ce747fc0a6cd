"""Exports of judgements for Label Studio and Argilla, each with matching project settings."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from klimb.feedback.records import Judgement
from klimb.io.show import Text

SIDES = {"first": "left", "second": "right"}
_ARGILLA_VALUES = {"first": "response1", "second": "response2", "tie": "tie"}
_GUIDELINES = "Which answer is better? Label it a tie if neither is better."
_LABEL_STUDIO = """<View>
  <Header value="Prompt"/>
  <Text name="prompt_text" value="$prompt_text"/>
  <Header value="Which answer is better?"/>
  <Pairwise name="preferred" toName="answer1,answer2"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">
    <Text name="answer1" value="$answer1"/>
    <Text name="answer2" value="$answer2"/>
  </View>
</View>
"""


def label_studio_tasks(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Tasks whose pairwise question knows left and right alone.

    Label Studio refuses annotations by people whom it has no account of, so that the rater stands beside the result.
    """
    tasks: dict[int, dict[str, Any]] = {}
    for said in judgements:
        if said.preferred not in SIDES:
            continue
        data = {
            "prompt": said.prompt,
            "prompt_text": plain_prompt(said.prompt),
            "answer1": said.first.text,
            "answer2": said.second.text,
        }
        task = tasks.setdefault(said.pair_id, {"id": said.pair_id, "data": data, "annotations": []})
        result = {
            "id": f"klimb-{said.id}",
            "from_name": "preferred",
            "to_name": "answer1,answer2",
            "type": "pairwise",
            "value": {"selected": SIDES[said.preferred]},
            "meta": {"rater": said.rater},
        }
        annotation = {"id": said.id, "lead_time": said.seconds, "ground_truth": False, "result": [result]}
        task["annotations"].append(annotation)
    return list(tasks.values())


def label_studio_settings(_: Sequence[Judgement]) -> str:
    """The labelling configuration of a project that takes `label_studio_tasks`."""
    return _LABEL_STUDIO


def argilla_records(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Records whose raters are numbers, as Argilla knows its users; the record's metadata have their names."""
    records: dict[int, dict[str, Any]] = {}
    raters: dict[int, dict[str, str]] = {}
    for said in judgements:
        if said.preferred not in _ARGILLA_VALUES:
            continue
        prompt = "prompt" if isinstance(said.prompt, str) else "messages"
        fields = {prompt: said.prompt, "response1": said.first.text, "response2": said.second.text}
        empty = {"id": str(said.pair_id), "fields": fields, "metadata": {}, "responses": {"preference": []}}
        record = records.setdefault(said.pair_id, empty)
        user = user_id(said)
        raters.setdefault(said.pair_id, {})[user] = said.rater
        record["metadata"]["raters"] = json.dumps(raters[said.pair_id], ensure_ascii=False)
        record["responses"]["preference"].append(
            {"value": _ARGILLA_VALUES[said.preferred], "user_id": user, "status": "submitted"}
        )
    return list(records.values())


def argilla_settings(judgements: Sequence[Judgement]) -> str:
    """What `argilla.Settings.from_json` makes the settings of a dataset of that takes `argilla_records`."""
    kinds = {isinstance(said.prompt, str) for said in judgements if said.preferred in _ARGILLA_VALUES}
    prompts = [("prompt", "text")] * (True in kinds) + [("messages", "chat")] * (False in kinds)
    texts = [*prompts, ("response1", "text"), ("response2", "text")]
    fields = [
        {
            "name": name,
            "title": name,
            "required": name.startswith("response") or len(prompts) == 1,
            "settings": {"type": kind, "use_markdown": False},
        }
        for name, kind in texts
    ]
    options = [
        {"value": "response1", "text": "the first"},
        {"value": "response2", "text": "the second"},
        {"value": "tie", "text": "a tie"},
    ]
    question = {
        "name": "preference",
        "title": "Which answer is better?",
        "required": True,
        "settings": {"type": "label_selection", "options": options, "visible_options": 3},
    }
    settings = {
        "guidelines": _GUIDELINES,
        "fields": fields,
        "questions": [question],
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }
    return json.dumps(settings, ensure_ascii=False, indent=1) + "\n"


def user_id(said: Judgement) -> str:
    """A rater's number, the same wherever the rater's name is; that of a judgement whose rater is not known."""
    try:
        return str(uuid.UUID(said.rater))
    except ValueError:
        name = f"klimb rater {said.rater}" if said.rater else f"klimb judgement {said.key or said.id}"
        return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def plain_prompt(prompt: Text) -> str:
    """A prompt as text, with the role of each turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
