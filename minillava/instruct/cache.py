"""Answers on the disk, a file each, named after a hash of the request: none is paid for twice."""
import hashlib
import json

from minillava.files import write
from minillava.instruct.exchange import Answer, TeacherError


def answer_path(folder, settings, messages):
    """settings: all that an answer depends on beside the messages, such as the model's name."""
    request = json.dumps([settings, messages], sort_keys=True)
    name = hashlib.sha256(request.encode()).hexdigest()
    return folder / name[:2] / f"{name}.json"


def read_answer(path):
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        prompt, answer = map(int, kept["tokens"])
        return Answer(kept["text"], (prompt, answer), kept.get("cut"))
    except (ValueError, KeyError, TypeError, OverflowError):
        raise TeacherError(f"{path} is no cached answer; delete it") from None


def write_answer(path, messages, answer):
    """The whole file or nothing, whenever the process may be killed."""
    kept = {"messages": messages, "text": answer.text, "tokens": list(answer.tokens)}
    if answer.cut:
        kept["cut"] = answer.cut
    write(path, json.dumps(kept))
