"""Visual instruction data from captions and boxes (section 3): GPT-4 wrote LLaVA's, and never saw a picture.

    python -m minillava.instruct_data --captions captions_train2014.json --instances instances_train2014.json \\
        --kinds conversation,detail,reasoning --count 1000 --teacher openai --out llava_instruct.json
    python -m minillava.instruct_data --captions captions_train2014.json --kinds brief --out stage_1.json

A picture is told to the teacher as five captions and, but for conversations, a line `category: [x1, y1, x2, y2]` for
each object. Instructions and examples are the text files in prompts/. The result is the JSON that train.py takes. The
second command needs no teacher: stage 1 learns from captions alone, thinned as the paper thinned CC3M to 595,000.
"""
import argparse
import json
import random
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

from minillava import toy_world
from minillava.run import write
from minillava.teacher import LimitReached, Teacher, add_arguments, open_teacher, run_command

PROMPTS = Path(__file__).parent / "prompts"
MIX = {"conversation": 58, "detail": 23, "reasoning": 77}  # thousands of each in LLaVA-Instruct-158K
TOY_QUESTIONS = {"brief": toy_world.BRIEF, "detail": toy_world.DETAIL}
FUNCTION_WORDS = set("""about above across after again against all along also although among and another any are around
    because been before behind being below beneath beside besides between both but can could did does doing done down
    during each either else ever every few for from had has have having her here hers him his how into its itself just
    like many may might more most much near nearby neither nor not off once one onto only other others our out over
    own per several she should since some still such than that the their them then there these they this those though
    through together too toward towards two under until upon very was were what when where whether which while who
    whom whose why will with within without would yet you your""".split())


# -------------------------------------------------------------------------------------------------- pictures as symbols

def read_jsonl(path):
    """A file of one JSON object per line -> list of dicts; ValueError names the line that is none."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"line {number} of {path} is not JSON") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} of {path} is not a JSON object")
    return rows


def read_symbols(captions, instances=None):
    """COCO's files captions_*.json and instances_*.json, or a jsonl of {"image", "captions", "instances"}
    -> {image file: (captions, [(category, [x1, y1, x2, y2]), ...])}, corners as fractions of the picture, 3 decimals.

    ValueError if a file is of another format.
    """
    file = captions
    try:
        if Path(captions).suffix == ".jsonl":
            return {row["image"]: ([" ".join(text.split()) for text in row["captions"]],
                                   [(thing["category"], thing["bbox"]) for thing in row.get("instances", ())])
                    for row in read_jsonl(captions)}
        told = json.loads(Path(captions).read_text(encoding="utf-8"))
        symbols = {image["id"]: ([], []) for image in told["images"]}
        for note in told["annotations"]:
            symbols[note["image_id"]][0].append(" ".join(note["caption"].split()))
        if instances:
            file = instances
            seen = json.loads(Path(instances).read_text(encoding="utf-8"))
            sizes = {image["id"]: (image["width"], image["height"]) for image in seen["images"]}
            categories = {category["id"]: category["name"] for category in seen["categories"]}
            for note in seen["annotations"]:
                (x, y, w, h), (W, H) = note["bbox"], sizes[note["image_id"]]
                if note["image_id"] in symbols:
                    box = [round(v, 3) for v in (x / W, y / H, (x + w) / W, (y + h) / H)]
                    symbols[note["image_id"]][1].append((categories[note["category_id"]], box))
        return {image["file_name"]: symbols[image["id"]] for image in told["images"]}
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, json.JSONDecodeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is not written as COCO's files are: {what}") from None


def in_symbols(kind, captions, boxes):
    """What the teacher is told: the captions, and for detail and reasoning an empty line and the boxes."""
    lines = [f"{category}: {box}" for category, box in boxes]
    return "\n".join(captions if kind == "conversation" or not lines else [*captions, "", *lines])


def choose(names, count, seed):
    """`count` of the names at random; a larger count only adds to them, so that a cache goes on serving."""
    names = sorted(names)
    if count > len(names):
        raise ValueError(f"{count} samples of a kind are asked for, and there are pictures for {len(names)}")
    random.Random(seed).shuffle(names)
    return names[:count]


def shares_of(kinds, count, pictures):
    """{kind: number of samples} in the paper's proportions; count None: as many as there are pictures for."""
    weights = {kind: MIX[kind] for kind in kinds}
    if count is None:
        return {kind: pictures * weight // max(weights.values()) for kind, weight in weights.items()}
    exact = {kind: count * weight / sum(weights.values()) for kind, weight in weights.items()}
    rest = count - sum(map(int, exact.values()))
    most = sorted(exact, key=lambda kind: int(exact[kind]) - exact[kind])[:rest]  # of the largest remainders
    return {kind: int(share) + (kind in most) for kind, share in exact.items()}


# -------------------------------------------------------------------------------------------------- asking the teacher

@lru_cache
def instructions(kind):
    """The system message and the examples of prompts/KIND, as chat messages."""
    read = lambda path: path.read_text(encoding="utf-8").strip()
    messages = [{"role": "system", "content": read(PROMPTS / kind / "system_message.txt")}]
    for symbols in sorted((PROMPTS / kind).glob("*_caps.txt")):
        reply = symbols.with_name(symbols.name.replace("caps", "conv"))
        messages += [{"role": "user", "content": read(symbols)}, {"role": "assistant", "content": read(reply)}]
    return messages


@lru_cache
def questions_of(kind):
    return (PROMPTS / kind / "questions.txt").read_text(encoding="utf-8").splitlines()


def parse(kind, reply):
    """The teacher's reply -> [(question, answer)], or [(None, answer)] for detail; ValueError says what is wrong."""
    blocks = [block.strip() for block in re.split(r"^[ \t]*===+[ \t]*$", reply, flags=re.M)]
    if kind == "detail":
        if len(blocks) > 1 or re.match(r"(question|answer):", blocks[0], re.I):
            raise ValueError("a description was asked for, and this has questions and answers")
        texts = blocks
    else:
        texts = []
        for i, block in enumerate(blocks):
            head = ("Question", "Answer")[i % 2]
            match = re.fullmatch(rf"{head}:(.*)", block, re.S | re.I)
            if not match:
                raise ValueError(f"block {i + 1} does not begin with {head}:")
            texts.append(match[1].strip())
        if len(texts) % 2:
            raise ValueError("the last question has no answer")
    if not all(texts):
        raise ValueError("a question or an answer is empty")
    if any("<image>" in text for text in texts):
        raise ValueError("<image> stands in a text")
    if any(re.search(r"\[\s*[\d.]+(\s*,\s*[\d.]+){3}\s*\]", text) for text in texts):
        raise ValueError("the numbers of a box are quoted")
    if texts[-1][-1].isalnum() or texts[-1][-1] in ",;-":
        raise ValueError("it ends in the middle of a sentence")
    return [(None, texts[0])] if kind == "detail" else list(zip(texts[::2], texts[1::2]))


def make_sample(name, kind, pairs, rng):
    """LLaVA-JSON. As in LLaVA's files, <image> stands before or after the first question at random."""
    turns = [{"from": role, "value": text} for pair in pairs for role, text in zip(("human", "gpt"), pair)]
    turns[0]["value"] = rng.choice(("<image>\n{}", "{}\n<image>")).replace("{}", turns[0]["value"])
    return {"id": f"{Path(name).stem}_{kind}", "image": name, "conversations": turns}


def make_samples(symbols, counts, teacher, seed, questions=None):
    """symbols as read_symbols gives them; counts: {"conversation", "detail" or "reasoning": number of samples}
    -> LLaVA-JSON samples; rejects, {"id", "image", "kind", "reason", "reply"}; the number that a limit left unasked.

    A malformed reply is asked for again once, then set aside. questions: {"detail": list} to use instead of prompts/.
    All is determined by the seed and the teacher's answers. TeacherError if the teacher cannot be asked at all.
    """
    jobs = [(kind, name) for kind, count in counts.items() for name in choose(symbols, count, f"{seed} {kind}")]
    questions = (questions or {}).get("detail") or questions_of("detail")

    def work(job):
        kind, name = job
        task, reply, reason = in_symbols(kind, *symbols[name]), "", ""
        rng, stem = random.Random(f"{seed} {kind} {name}"), Path(name).stem
        try:
            for _ in range(2):
                reply = teacher.ask([*instructions(kind), {"role": "user", "content": task}])
                try:
                    pairs = [(question or rng.choice(questions), answer) for question, answer in parse(kind, reply)]
                    return make_sample(name, kind, pairs, rng), None
                except ValueError as error:
                    reason = str(error)
                    task += f"\n\n(Write it anew, in the form asked for. Your last reply was no good: {reason}.)"
        except LimitReached:
            return None, None
        except ValueError as error:  # no reply at all to this one
            reason = str(error)
        return None, {"id": f"{stem}_{kind}", "image": name, "kind": kind, "reason": reason, "reply": reply}

    done = teacher.map(work, jobs, "instruction data")
    samples, rejects = ([pair[i] for pair in done if pair[i]] for i in (0, 1))
    return samples, rejects, len(jobs) - len(samples) - len(rejects)


# ---------------------------------------------------------------------------------------------- captions alone: stage 1

def thin(captions, rng, rarest=3, most=100):
    """The paper's filter of CC3M (appendix): {name: caption} -> the names that are kept, and counts of concepts.

    A caption is kept for each of its concepts: for all of one that 3 to 100 captions have, for 100 drawn at random of a
    common one, never for a rare one. The paper's concepts are noun phrases by spaCy; here, any word of three letters or
    more that is not a function word, so that "dog" and "dogs" are two.
    """
    holders = defaultdict(list)
    for name, caption in captions.items():
        for word in sorted(set(re.findall(r"[^\W\d_]{3,}", caption.lower())) - FUNCTION_WORDS):
            holders[word].append(name)
    kept = set()
    for word, names in sorted(holders.items(), key=lambda item: (len(item[1]), item[0])):
        if len(names) >= rarest:
            kept.update(names if len(names) <= most else rng.sample(names, most))
    sizes = [len(names) for names in holders.values()]
    counts = {"concepts": len(sizes), "rare": sum(n < rarest for n in sizes), "common": sum(n > most for n in sizes)}
    return [name for name in captions if name in kept], counts


def brief_samples(symbols, seed, count=None, thinned=True, questions=None):
    """One caption and one question of the brief list per picture -> samples, and thin's counts or None."""
    one_each = {name: random.Random(f"{seed} {name}").choice(captions) for name, (captions, _) in symbols.items()}
    names, counts = thin(one_each, random.Random(seed)) if thinned else (list(one_each), None)
    samples, questions = [], (questions or {}).get("brief") or questions_of("brief")
    for name in names if count is None else choose(names, count, seed):
        rng = random.Random(f"{seed} brief {name}")
        samples.append(make_sample(name, "brief", [(rng.choice(questions), one_each[name])], rng))
    return samples, counts


def toy_samples(symbols, kinds, seed):
    """The miniature's data, by the toy world's teacher. kinds: {"brief", "conversation", "detail", "reasoning" or
    "text": for which share of the pictures}; "text" is small talk without a picture."""
    counts = {kind: round(share * len(symbols)) for kind, share in kinds.items()}
    talks, briefs, rng = counts.pop("text", 0), counts.pop("brief", 0), random.Random(f"{seed} text")
    samples = brief_samples(symbols, seed, briefs, False, TOY_QUESTIONS)[0] if briefs else []
    teacher = Teacher(lambda messages: (toy_world.ask(messages), 0, 0))
    samples += make_samples(symbols, counts, teacher, seed, TOY_QUESTIONS)[0]
    for i in range(talks):
        question, answer = toy_world.small_talk(rng)
        samples.append({"id": f"{i:012}_text", "conversations": [{"from": "human", "value": question},
                                                             {"from": "gpt", "value": answer}]})
    return samples


# ---------------------------------------------------------------------------------------------------------- the command

def show(samples, rejects):
    """The table of what was made."""
    print(f"{'kind':14}{'samples':>9}{'questions':>11}{'words a question':>18}{'words an answer':>17}{'rejects':>9}")
    kind_of = lambda sample: sample["id"].rpartition("_")[2]
    for kind in dict.fromkeys([*map(kind_of, samples), *(row["kind"] for row in rejects)]):
        turns = [turn for sample in samples if kind_of(sample) == kind for turn in sample["conversations"]]
        words = {role: [len(turn["value"].replace("<image>", "").split()) for turn in turns if turn["from"] == role]
                 for role in ("human", "gpt")}
        human, gpt = (sum(counts) / max(1, len(counts)) for counts in words.values())
        print(f"{kind:14}{sum(kind_of(s) == kind for s in samples):9}{len(words['human']):11}{human:18.1f}{gpt:17.1f}"
              f"{sum(row['kind'] == kind for row in rejects):9}")


def run(args):
    """-> exit code."""
    kinds, left = args.kinds.split(","), 0
    unknown = [kind for kind in kinds if kind not in MIX and kinds != ["brief"]]
    if unknown or len(set(kinds)) < len(kinds) or (args.count is not None and args.count < 1):
        raise ValueError("--kinds is brief, or some of conversation,detail,reasoning, each once; --count is at least 1")
    everything = read_symbols(args.captions, args.instances)
    if {"detail", "reasoning"} & set(kinds) and not args.instances and args.captions.suffix != ".jsonl":
        raise ValueError("detail and reasoning are made from boxes too; give --instances")
    symbols = {name: pair for name, pair in everything.items() if pair[0]}
    print(f"{len(everything)} pictures, {len(everything) - len(symbols)} of them without captions and so left out")
    if kinds == ["brief"]:
        rejects, (samples, counts) = [], brief_samples(symbols, args.seed, args.count, not args.keep_all)
        if counts:
            print("{concepts} concepts (content words), {rare} in fewer than 3 captions, {common} in more than 100"
                  .format(**counts))
    else:
        teacher = open_teacher(args)
        samples, rejects, left = make_samples(symbols, shares_of(kinds, args.count, len(symbols)), teacher, args.seed,
                                              TOY_QUESTIONS if args.teacher == "toy" else None)
        print(teacher.report())
        aside = args.out.with_suffix(".rejects.jsonl")
        write(aside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejects))
        print(f"{len(rejects)} replies were set aside in {aside}"
              + "".join(f"\n{n:8}  {why}" for why, n in Counter(row["reason"] for row in rejects).most_common(3)))
    write(args.out, json.dumps(samples, ensure_ascii=False, indent=1))
    show(samples, rejects)
    print(f"{len(samples)} samples are in {args.out}")
    if left:
        print(f"{left} samples were not asked for: the limit is near; raise it and run again to go on")
    return 1 if left else 0


def main():
    parser = argparse.ArgumentParser(prog="python -m minillava.instruct_data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="COCO's captions_*.json, or a jsonl")
    parser.add_argument("--instances", type=Path, help="COCO's instances_*.json")
    parser.add_argument("--kinds", default="conversation,detail,reasoning", help="or brief, for stage 1")
    parser.add_argument("--count", type=int, help="samples in all, 58 : 23 : 77 as in the paper (default: all it can)")
    parser.add_argument("--keep-all", action=argparse.BooleanOptionalAction, default=False,
                        help="brief: do not thin the captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    add_arguments(parser, temperature=0.7)
    parser.set_defaults(run=run)
    run_command(parser)


if __name__ == "__main__":
    main()
