"""ScienceQA from the questions to the table (section 5.2 of the paper).

    python eval_scienceqa.py                          # the shipped miniature, on a mini ScienceQA drawn for it
    python eval_scienceqa.py --model DIR --data ScienceQA --out answers.jsonl         # goes on where it was stopped
    python eval_scienceqa.py --data ScienceQA --score-only answers.jsonl              # official result files too
    python eval_scienceqa.py --data ScienceQA --score-only answers.jsonl --teacher gpt4.json --ensemble complement
    python eval_scienceqa.py ... --teacher gpt4.json --ensemble judge --judge openai  # asks again where the two differ

Prompt format, template and image size are the checkpoint's own; the report states them. Decoding is greedy.
"""
import argparse
import dataclasses
import json
import sys
import tempfile
import zlib
from pathlib import Path

from minillava.checkpoint import TOY, load_llava
from minillava.conversation import TEMPLATES
from minillava.evaluation import scienceqa, scienceqa_scores
from minillava.evaluation.answers import answer_file
from minillava.files import read_jsonl, read_object
from minillava.generate import generate
from minillava.images import load_image
from minillava.instruct.command import add_arguments, open_teacher
from minillava.instruct.teacher import BadReply
from minillava.toy.scienceqa import make_scienceqa


# ------------------------------------------------------------------------------------------------------- answering

def settings_of(model, args):
    """{name: value} of all that decides the answers; prints each with where it comes from."""
    config, own = model.config, model.config.prompt_format
    format, letter, origin = own, args.option_letter, "the checkpoint's"
    if args.prompt_format:
        format, origin = args.prompt_format, f"--prompt-format; the checkpoint says {own or 'nothing'}"
    elif not own:
        format, letter = "CQM-A", True
        origin = "the checkpoint says nothing: as LLaVA-1.5, which was not trained for ScienceQA, is evaluated"
    origins = {"prompt_format": origin, "option_letter": "--option-letter, or as the format",
               "use_caption": "--use-caption", "max_new_tokens": "--max-new-tokens"}
    if args.template:
        origins["template"] = f"--template; the checkpoint says {config.template}"
        config = model.config = dataclasses.replace(config, template=args.template)
    settings = {"prompt_format": format, "option_letter": letter, "use_caption": args.use_caption,
                "template": config.template, "image_size": config.vision_config.image_size,
                "image_aspect_ratio": config.image_aspect_ratio, "max_new_tokens": args.max_new_tokens,
                "dtype": str(model.language_model.embed_tokens.weight.dtype).removeprefix("torch."),
                "weights": fingerprint(model)}
    for name, value in settings.items():
        origin = origins.get(name, "the checkpoint's")
        print(f"  {name:20}{value!s:12}  {origin}")
    return settings


def fingerprint(model):
    """A checksum over some of each tensor's numbers: after a training step it is another one."""
    total = 0
    for p in model.parameters():
        some = p.detach().flatten()[:: max(1, p.numel() // 64)]
        total = zlib.crc32(some.float().cpu().numpy().tobytes(), total)
    return f"{total:08x}"


def answering(model, tokenizer, settings):
    """-> a function from a batch of questions to their texts, greedy."""
    def answer(asked):
        prompts = [question["prompt"] for question in asked]
        images = [question["image"] and load_image(question["image"]) for question in asked]
        found = generate(model, tokenizer, prompts, images, settings["max_new_tokens"])
        if not settings["prompt_format"].endswith("LEPA"):
            return found
        # The first LLaVA was asked twice: to reason, then, after its own reasoning, for the letter. (The official code
        # joins its reasoning to "Assistant:" without the space that the model itself writes there.)
        reasoning = [text.split("###")[0].strip() for text in found]
        letters = generate(model, tokenizer, prompts, images, 64, answer_prefix=[f"{text} ###\nANSWER:" for text in reasoning])
        return [f"{text}\n The answer is {letter.split('###')[0].strip()}" for text, letter in zip(reasoning, letters)]
    return answer


def answers_of(model, tokenizer, args, problems):
    """Asks all questions -> ({id: text}, {id: text given another question's image} or None, settings)."""
    settings = settings_of(model, args)
    samples = scienceqa.convert(args.data, args.split, settings["prompt_format"], args.use_caption, args.text_only)
    images = scienceqa.image_folder(args.data, args.split)
    scienceqa.check_images(samples, images)
    questions, name = scienceqa.ask(samples, images, settings["option_letter"]), (args.model or TOY / "scienceqa").name
    answer = answering(model, tokenizer, settings)
    rows = answer_file(questions, args.out, answer, name, settings, args.batch)
    texts, control = {row["question_id"]: row["text"] for row in rows}, None
    if args.control:
        shown = [question for question in questions if question["image"]]
        swapped = [question | {"image": other["image"]} for question, other in zip(shown, shown[1:] + shown[:1])]
        rows = answer_file(swapped, args.out.with_suffix(".control.jsonl"), answer, name,
                           settings | {"control": "another question's image"}, args.batch)
        control = texts | {row["question_id"]: row["text"] for row in rows}
    return texts, control, settings


# ---------------------------------------------------------------------------------------------------------- scoring

def read_results(path, args, problems):
    """An answer file -> ({id: text}, {id: choice that the file itself states}, settings or None).

    Lines with question_id and text, or a JSON object with "results" (choices) or "outputs" (texts) or both.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no answer file {path}")
    try:
        data = read_object(path)
    except ValueError:
        data = {}
    chosen, settings = {}, None
    if "results" in data or "outputs" in data:
        texts, chosen = data.get("outputs", {}), data.get("results", {})
        if not all(isinstance(table, dict) for table in (texts, chosen)):
            raise ValueError(f'{path}: "results" and "outputs" are objects, {{id: choice}} and {{id: text}}')
    else:
        texts, rows = {}, read_jsonl(path)
        for row in rows:
            i = str(row.get("question_id"))
            if "text" not in row or i in texts:
                raise ValueError(f"{path} has question {i} twice" if i in texts else f"{path}: a line without a text")
            texts[i] = row["text"]
        settings = rows[0].get("metadata") if rows else None
        if any(row.get("metadata") != settings for row in rows):
            raise ValueError(f"{path} mixes answers of different settings, such as {settings}; score them apart")
    if not texts and not chosen:
        raise ValueError(f"{path} holds no answers")
    for table, kind in ((texts, str), (chosen, int)):
        for i, value in table.items():
            if i not in problems:
                other = read_object(args.data / "problems.json").get(i)
                where = f"is of split {other['split']}, not {args.split}" if other else f"{args.data} does not know"
                raise ValueError(f"{path} answers question {i}, which {where}")
            if type(value) is not kind:
                raise ValueError(f"{path}: the answer to question {i} is {value!r:.40}, not {kind.__name__}")
    return texts, chosen, settings


def choices(texts, problems, args, shortcuts=True):
    """{id: text} -> {id: index of a choice, or -1}."""
    counts = {i: len(problems[i]["choices"]) for i in texts}
    if args.strict_official:
        return {i: scienceqa_scores.official_choice_of(text, counts[i], shortcuts) for i, text in texts.items()}
    return {i: scienceqa_scores.choice_of(text, counts[i]) for i, text in texts.items()}


def right(chosen, problems):
    return {i: float(choice == problems[i]["answer"]) for i, choice in chosen.items()}


def report(rows, problems, args):
    """rows: {name: {id: choice}}, all over the same ids. Prints how much was scored, and the table."""
    scored = {i: problems[i] for i in next(iter(rows.values()))}
    whole = len(problems) if args.drawn else scienceqa.SPLIT_SIZES.get(args.split, len(problems))
    own = f" (ScienceQA's own {args.split} has {whole})" if whole != len(problems) else ""
    print(f"\nscored: {len(scored)} of {len(problems)} questions of split {args.split}{own}")
    shares = {name: right(chosen, problems) for name, chosen in rows.items()}
    shares["guessing"] = {i: 1 / len(problem["choices"]) for i, problem in scored.items()}
    print(scienceqa_scores.table(scored, shares))
    if args.topics:
        print(f"\n{scienceqa_scores.table(scored, shares, topics=True)}")
    return shares


def single(texts, chosen, control, problems, args):
    """Scores one model's answers."""
    read = choices(texts, problems, args)
    rows = {"answers": chosen or read}
    if control:
        rows["another image"] = choices(control, problems, args)
    if args.strict_official:  # a question without an answer has a wrong one
        rows = {name: {i: found.get(i, -1) for i in problems} for name, found in rows.items()}
    shares, lost = report(rows, problems, args), sum(choice < 0 for choice in read.values())
    if texts:
        fate = "; for these the choice counts that the file states" if chosen else "; they count as wrong"
        print(f"unparsable: {lost} of {len(texts)}{fate if lost else ''}")
    if args.strict_official:
        seen = [share for i, share in shares["answers"].items() if problems[i]["image"]]
        total = len(shares["answers"])
        print(f"Total: {total}, Correct: {sum(shares['answers'].values()):.0f}, "
              f"Accuracy: {100 * sum(shares['answers'].values()) / total:.2f}%, "
              f"IMG-Accuracy: {100 * sum(seen) / max(1, len(seen)):.2f}%")
    return rows["answers"], texts


def ensemble(texts, problems, args):
    """Ours and a text-only teacher's together (table 7, the last rows)."""
    theirs, _, _ = read_results(args.teacher, args, problems)
    if not theirs:
        raise ValueError(f"{args.teacher} states choices without texts; an ensemble needs the texts")
    both = {i: problems[i] for i in problems if i in texts and i in theirs}
    if not both:
        raise ValueError(f"no question is answered both by us and by {args.teacher}")
    ours, teacher = (choices({i: said[i] for i in both}, problems, args, shortcuts=False) for said in (texts, theirs))
    rows, failed = {"ours": ours, "teacher": teacher, "complement": scienceqa_scores.complement(ours, teacher)}, []
    if args.ensemble == "judge":
        asked = scienceqa_scores.disagree(ours, teacher)
        said = verdicts_of({i: scienceqa_scores.judge_prompt(problems[i], texts[i], theirs[i]) for i in asked}, args, problems)
        verdicts = choices({i: said[i] for i in asked if i in said}, problems, args, shortcuts=False)
        failed = [i for i in asked if verdicts.get(i, -1) < 0]
        rows["judge"] = scienceqa_scores.judged(ours, verdicts)
    rows["upper bound"] = {i: teacher[i] if teacher[i] == problems[i]["answer"] else ours[i] for i in both}
    report(rows, problems, args)
    for name, found in (("ours", ours), ("the teacher", teacher)):
        count = sum(choice < 0 for choice in found.values())
        print(f"no answer to be read from {name}: {count} of {len(both)} ({100 * count / len(both):.2f} %)")
    if args.ensemble == "judge":
        print(f"the judge was asked {len(asked)} questions and gave no answer to {len(failed)}; there ours stands")
    return rows[args.ensemble], {i: theirs[i] if rows[args.ensemble][i] == teacher[i] else texts[i] for i in both}


def verdicts_of(prompts, args, problems):
    """{id: prompt of the second query} -> {id: the judge's text}; --requery is read if it exists, else written."""
    if args.requery and args.requery.exists():
        return read_results(args.requery, args, problems)[0]
    if not args.judge:
        raise ValueError("--ensemble judge needs --judge openai|FOLDER to ask, or --requery with its answers")
    judge = open_teacher(argparse.Namespace(**vars(args) | {"teacher": args.judge}))

    def ask(i):
        try:
            return i, judge.ask([{"role": "user", "content": prompts[i]}])
        except BadReply as error:
            print(f"question {i}: {error}", file=sys.stderr)

    said = dict(pair for pair in judge.map(ask, list(prompts), "judge") if pair)
    print(f"judge: {judge.report()}")
    if args.requery:
        args.requery.write_text("".join(json.dumps({"question_id": i, "prompt": prompts[i], "text": said[i]}) + "\n"
                                        for i in prompts if i in said))
    return said


def write_results(path, chosen, texts, problems):
    """A results file as the official scripts write it."""
    correct = sum(chosen[i] == problems[i]["answer"] for i in chosen)
    path.write_text(json.dumps({"acc": 100 * correct / len(chosen), "correct": correct, "count": len(chosen),
                                "results": chosen, "outputs": texts}, indent=2))


def evaluate(args):
    problems = scienceqa.load(args.data, args.split)
    chosen, control = {}, None
    if args.score_only:
        texts, chosen, settings = read_results(args.score_only, args, problems)
        print(f"settings: {json.dumps(settings) if settings else 'the file does not state them'}")
    else:
        toy = args.model is None and args.language is None
        model, tokenizer = load_llava(TOY / "scienceqa" if toy else args.model, vision=args.vision,
                                      language=args.language, projector=args.projector, device=args.device,
                                      dtype="float32" if toy else args.dtype)
        texts, control, settings = answers_of(model, tokenizer, args, problems)
    if args.teacher:
        chosen, texts = ensemble(texts, problems, args)
    else:
        chosen, texts = single(texts, chosen, control, problems, args)
    if args.results:
        write_results(args.results, chosen, texts, problems)


def main():
    # "resolve": --teacher is a file here, who is asked is --judge; the other flags of a teacher are the same.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     conflict_handler="resolve")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--model", type=Path, help="folder of a LLaVA (default: the shipped miniature)")
    for part in ("vision", "language", "projector"):
        parser.add_argument(f"--{part}", help=f"the {part} where the model comes in parts, see the README")
    parser.add_argument("--data", type=Path, help="ScienceQA's folder (default: a mini one is drawn)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, help="the answers, a line each; what is answered there is not asked again")
    parser.add_argument("--batch", type=int, default=16, help="questions at a time")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--prompt-format", help="such as QCM-LEA (default: the checkpoint's)")
    parser.add_argument("--template", choices=[name for name in TEMPLATES if name != "plain"],
                        help="default: the checkpoint's")
    parser.add_argument("--option-letter", action=flag, default=False,
                        help=f'end the prompt with "{scienceqa.OPTION_LETTER}"')
    parser.add_argument("--use-caption", action=flag, default=False, help="the image's caption goes into the context")
    parser.add_argument("--text-only", action=flag, default=False, help="leave out the questions with an image")
    parser.add_argument("--control", action=flag, default=False, help="ask again with each other's images")
    parser.add_argument("--score-only", type=Path, metavar="FILE", help="score this answer file, ask nothing")
    parser.add_argument("--strict-official", action=flag, default=False, help="read answers as the official script does")
    parser.add_argument("--topics", action=flag, default=False, help="a table of topics too")
    parser.add_argument("--results", type=Path, help="write the official JSON of results and outputs")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--questions", type=int, default=600, help="size of the mini ScienceQA")
    parser.add_argument("--seed", type=int, default=0, help="of the mini ScienceQA")
    add_arguments(parser, temperature=0.0)
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="answers of a text-only teacher, for an ensemble")
    parser.add_argument("--ensemble", choices=("complement", "judge"), default="complement")
    parser.add_argument("--judge", metavar="openai|FOLDER", help="whom to ask where ours and the teacher's differ")
    parser.add_argument("--requery", type=Path, metavar="FILE", help="the judge's answers: read or written")
    args = parser.parse_args()
    try:
        if min(args.batch, args.max_new_tokens, args.questions) < 1:
            raise ValueError("--batch, --max-new-tokens and --questions are at least 1")
        if args.data is None and args.score_only:
            raise ValueError("--score-only needs --data, the folder of the questions")
        if args.data is not None and not (args.out or args.score_only):
            raise ValueError("name a file for the answers with --out; a stopped evaluation goes on from it")
        with tempfile.TemporaryDirectory() as folder:
            args.drawn = args.data is None
            if args.drawn:
                print(f"a mini ScienceQA: {args.questions} held-out questions of the toy world")
                args.data, args.control = Path(folder), True
                make_scienceqa(args.data, {args.split: args.questions}, args.seed)
            args.out = args.out or Path(folder, "answers.jsonl")
            evaluate(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; with the same --out the same command goes on where it was\n")


if __name__ == "__main__":
    main()
