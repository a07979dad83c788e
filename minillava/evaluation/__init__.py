"""Section 5 of the papers: what a LLaVA is worth.

Read in this order:

    questions      question files, and the pictures that go with them
    answers        answer files: shared among processes, stopped, gone on with
    asking         a model answers a question file
    vqa_text       how short answers are compared
    scores         the scores of POPE, MME, TextVQA, GQA, SEED-Bench, LLaVA-Bench
    mmbench, xlsx  MMBench's circles, and its spreadsheet
    uploads        what the other servers take
    benchmarks     one table of them all: questions, wish, labels, score, upload, published figures
    scoring        the commands `score`, `upload` and `table`
    judge, report  LLaVA-Bench: a judge compares two answers, and what comes of it

    scienceqa, scienceqa_asking, scienceqa_answers, scienceqa_table, scienceqa_ensemble
                   section 5.2, the rooms behind eval_scienceqa.py
"""
