"""Answers on the disk, one file each, named after a hash of the request: what is paid for is never lost."""
import hashlib
import json
import os
import threading

from minillava.instruct.exchange import Answer, TeacherError


def answer_path(folder, settings, messages):
    """settings: all that an answer depends on beside the messages, such as the model's name."""
    request = json.dumps([settings, messages], sort_keys=True)
    name = hashlib.sha256(request.encode()).hexdigest()
    return folder / name[:2] / f"{name}.json"


def read_answer(path):
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Answer(kept["text"], *kept["tokens"])
    except (ValueError, KeyError, TypeError):
        raise TeacherError(f"{path} is no cached answer; delete it") from None


def write_answer(path, messages, answer):
    """The whole file or nothing, whenever the process may be killed."""
    tokens = [answer.prompt_tokens, answer.answer_tokens]
    kept = {"messages": messages, "text": answer.text, "tokens": tokens}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")  # another run may write it too
    new.write_text(json.dumps(kept), encoding="utf-8")
    os.replace(new, path)
