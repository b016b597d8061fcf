"""Compares electra's metrics with scikit-learn, scipy, seqeval, SQuAD's script and the rules of CMRC 2018.

    check_metrics.py cases > CASES             random cases, one JSON object a line
    check_metrics.py compare CASES RESULTS     RESULTS: the scores of each case, one object a line

Run by `cargo test --release -p electra-data --test metrics`. Exits with 3 if a package is missing.

SQuAD's evaluation script of version 2.0 comes from the last release of transformers that had it, whose wheel is downloaded
once, beside the other packages, and not installed.
"""

import collections
import functools
import json
import math
import random
import re
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path

EACH = 1000
BOUND = 1e-12
SCHEMES = ["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"]
PREFIXES = {"IOB1": "IB", "IOB2": "IB", "IOE1": "IE", "IOE2": "IE", "IOBES": "IBES", "BILOU": "IBLU"}


# Cases.


def classes(rng):
    n = rng.randint(2, 5)
    length = rng.randint(1, 40)
    gold = [rng.randrange(n) for _ in range(length)]
    predicted = [g if rng.random() < 0.5 else rng.randrange(n) for g in gold]
    return {"classes": n, "gold": gold, "predicted": predicted}


def labels(rng):
    n = rng.randint(1, 5)
    rows = rng.randint(1, 20)
    draw = lambda: [[rng.random() < 0.4 for _ in range(n)] for _ in range(rows)]
    return {"gold": draw(), "predicted": draw()}


def values(rng):
    length = rng.randint(3, 40)
    grid = rng.choice([3, 10, 10**9])
    draw = lambda: rng.randint(0, grid) / 7 - rng.choice([0, 100])
    return {"gold": [draw() for _ in range(length)], "predicted": [draw() for _ in range(length)]}


def tags(rng):
    scheme = rng.choice(SCHEMES)
    kinds = ["A", "B-C", "D"][: rng.randint(1, 3)]

    def tag():
        if rng.random() < 0.3:
            return "O"
        return rng.choice(PREFIXES[scheme]) + "-" + rng.choice(kinds)

    gold = [[tag() for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 6))]
    predicted = [[t if rng.random() < 0.6 else tag() for t in row] for row in gold]
    return {"scheme": scheme, "gold": gold, "predicted": predicted}


ENGLISH = """the a an The Panthers panthers' defense gave up 308 points, in 1984. U.S. naïve Åse "quoted" it's don't
$3.88 -- – — a–b a- (the) the, an. the-a AN! ½ 12% e.g. İstanbul ＡＢ \u00a0 \t \x1c it’s a\u0301 ١٢ रि १ ⅷ _a_ a_b""".split(" ")


def english(rng):
    return " ".join(rng.choice(ENGLISH) for _ in range(rng.randint(0, 6)))


def question(rng, make, answers):
    gold = [make(rng) for _ in range(answers)]
    predicted = rng.choice(gold) if gold and rng.random() < 0.4 else make(rng)
    if rng.random() < 0.1:
        predicted = ""
    return {"gold": gold, "predicted": predicted, "null": rng.choice([rng.uniform(-5, 5), float(rng.randint(-2, 2))])}


def squad(rng):
    return {"questions": [question(rng, english, rng.randint(1, 3)) for _ in range(rng.randint(1, 12))]}


def squad2(rng):
    questions = [question(rng, english, rng.choice([0, 0, 1, 2, 3])) for _ in range(rng.randint(1, 12))]
    return {"questions": questions, "threshold": rng.choice([0.0, 1.0, -2.75, 0.5])}


CHINESE = list("光荣和武田信玄等人为主《战国三杰》，。：？！“”；’……·、「」（）－～『』-:_*^/\\~`+= \n")
LATIN = """omega ω-force psp 2010 3,000 3.5 u.s. don't can't it's 'tis 'twas cannot gonna wanna gimme gotta lemme more'n d'ye
"quoted" ''x'' (a) [b] {c} <d> end. end.) ... .. . , ; @ # $5 5% & ? ! ' '' the dogs' we'll they're i've 'tain't a,b a, 1,a ,, ,,, .,
«x» ‘y’ „z – — x-y hello.world no. no." "no." n't 's it´s é.""".split()


def chinese(rng):
    out = []
    for _ in range(rng.randint(1, 8)):
        out.append(rng.choice(CHINESE) if rng.random() < 0.5 else rng.choice(LATIN) + rng.choice(["", " ", " "]))
    return "".join(out)


def cmrc(rng):
    return {"questions": [question(rng, chinese, rng.randint(1, 3)) for _ in range(rng.randint(1, 6))]}


KINDS = {f.__name__: f for f in (classes, labels, values, tags, squad, squad2, cmrc)}


# Expected scores.


def expect_classes(case):
    from sklearn import metrics

    gold, predicted, n = case["gold"], case["predicted"], case["classes"]
    out = {"accuracy": metrics.accuracy_score(gold, predicted), "mcc": metrics.matthews_corrcoef(gold, predicted)}
    score = lambda **how: metrics.precision_recall_fscore_support(gold, predicted, zero_division=0, **how)[:3]
    out["macro"] = score(average="macro")
    out["micro"] = score(average="micro")
    out["per_class"] = [list(row) for row in zip(*score(average=None, labels=list(range(n))))]
    out["confusion"] = metrics.confusion_matrix(gold, predicted, labels=list(range(n))).tolist()
    if n == 2:
        out["binary"] = score(average="binary", pos_label=1)
    return out


def expect_labels(case):
    import numpy
    from sklearn import metrics

    gold, predicted = numpy.array(case["gold"], int), numpy.array(case["predicted"], int)
    # One column would be taken for classes; a column of zeros beside it changes no sum.
    if gold.shape[1] == 1:
        pad = lambda x: numpy.concatenate([x, numpy.zeros_like(x)], axis=1)
        score = lambda **how: metrics.precision_recall_fscore_support(
            pad(gold), pad(predicted), zero_division=0, labels=[0], **how
        )[:3]
    else:
        score = lambda **how: metrics.precision_recall_fscore_support(gold, predicted, zero_division=0, **how)[:3]
    return {
        "micro": score(average="micro"),
        "macro": score(average="macro"),
        "accuracy": float((gold == predicted).all(axis=1).mean()),
    }


def expect_values(case):
    from scipy import stats
    from sklearn import metrics

    gold, predicted = case["gold"], case["predicted"]
    return {
        "pearson": stats.pearsonr(gold, predicted).statistic,
        "spearman": stats.spearmanr(gold, predicted).statistic,
        "mse": metrics.mean_squared_error(gold, predicted),
    }


def expect_tags(case):
    from seqeval import metrics, scheme

    gold, predicted = case["gold"], case["predicted"]
    out = {}
    for mode, how in (("default", {}), ("strict", {"mode": "strict", "scheme": getattr(scheme, case["scheme"])})):
        for average in ("micro", "macro"):
            out[mode + "_" + average] = [
                score(gold, predicted, average=average, zero_division=0, **how)
                for score in (metrics.precision_score, metrics.recall_score, metrics.f1_score)
            ]
            # The mean over no kind of entity: not a number in numpy, zero in electra.
            out[mode + "_" + average] = [0.0 if math.isnan(x) else x for x in out[mode + "_" + average]]
    out["accuracy"] = metrics.accuracy_score(gold, predicted)
    try:
        out["detected"] = scheme.auto_detect(gold).__name__
    except ValueError:
        out["detected"] = None
    return out


SQUAD_WHEEL = "transformers==4.57.3"


@functools.cache
def published_squad():
    """SQuAD's script as a module."""
    folder = Path(sys.prefix) / "share" / "electra-squad"
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--dest", str(folder), SQUAD_WHEEL]).returncode:
            print("cannot download", SQUAD_WHEEL, file=sys.stderr)
            sys.exit(3)
        wheels = list(folder.glob("*.whl"))
    source = zipfile.ZipFile(wheels[0]).read("transformers/data/metrics/squad_metrics.py").decode()
    # What it imports from its package is for other functions.
    source = re.sub(r"^from \.\.\..*$", "", source, flags=re.M)
    source = re.sub(r"^logger = .*$", "", source, flags=re.M)
    module = types.ModuleType("squad_metrics")
    exec(compile(source, "squad_metrics.py", "exec"), module.__dict__)
    return module


def expect_squad(case):
    script = published_squad()

    def f1(gold, predicted):
        # Version 1.1 counts shared words alone, 2.0 equal answers without words too.
        both = script.get_tokens(gold) and script.get_tokens(predicted)
        return script.compute_f1(gold, predicted) if both else 0.0

    n = len(case["questions"])
    pairs = [[(g, q["predicted"]) for g in q["gold"]] for q in case["questions"]]
    return {
        "exact": sum(max(script.compute_exact(*pair) for pair in of_one) for of_one in pairs) / n,
        "f1": sum(max(f1(*pair) for pair in of_one) for of_one in pairs) / n,
    }


def expect_squad2(case):
    questions = {str(i): q for i, q in enumerate(case["questions"])}
    examples = [
        types.SimpleNamespace(qas_id=name, answers=[{"text": g} for g in q["gold"]]) for name, q in questions.items()
    ]
    predicted = {name: q["predicted"] for name, q in questions.items()}
    null = {name: q["null"] for name, q in questions.items()}
    found = published_squad().squad_evaluate(examples, predicted, null, case["threshold"])
    out = {name: found[name] / 100 for name in ("exact", "f1", "best_exact", "best_f1")}
    return out | {f"threshold_{name}": found[f"best_{name}_thresh"] for name in ("exact", "f1")}


SIGNS = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def cmrc_segments(text):
    from nltk import word_tokenize

    parts = re.split(r"([\u4e00-\u9fa5])", "".join(c for c in text.lower().strip() if c not in SIGNS))
    out = []
    for place, part in enumerate(parts):
        out += [part] if place % 2 else word_tokenize(part, preserve_line=True)
    return out


def longest_run(a, b):
    best = 0
    for i in range(len(a)):
        for j in range(len(b)):
            k = 0
            while i + k < len(a) and j + k < len(b) and a[i + k] == b[j + k]:
                k += 1
            best = max(best, k)
    return best


def expect_cmrc(case):
    plain = lambda text: "".join(c for c in text.lower().strip() if c not in SIGNS)
    exact = f1 = 0.0
    for q in case["questions"]:
        exact += any(plain(g) == plain(q["predicted"]) for g in q["gold"])
        predicted = cmrc_segments(q["predicted"])
        best = 0.0
        for g in q["gold"]:
            gold = cmrc_segments(g)
            run = longest_run(gold, predicted)
            if run:
                precision, recall = run / len(predicted), run / len(gold)
                best = max(best, 2 * precision * recall / (precision + recall))
        f1 += best
    n = len(case["questions"])
    return {"exact": exact / n, "f1": f1 / n}


def same(expected, found):
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(same(expected[k], found[k]) for k in expected)
    if isinstance(expected, (list, tuple)):
        return len(expected) == len(found) and all(map(same, expected, found))
    if expected is None or isinstance(expected, str):
        return expected == found
    expected = float(expected)
    if math.isnan(expected):
        return found is None
    return found is not None and abs(expected - found) <= BOUND * max(1.0, abs(expected))


def compare(cases, results):
    warnings.simplefilter("ignore")
    counts, wrong = collections.Counter(), 0
    with open(cases) as cases, open(results) as results:
        for case, result in zip(map(json.loads, cases), map(json.loads, results), strict=True):
            kind = case["kind"]
            expected = globals()["expect_" + kind](case)
            counts[kind] += 1
            if not same(expected, result):
                wrong += 1
                if wrong <= 5:
                    print(json.dumps(case, ensure_ascii=False), expected, result, sep="\n", end="\n\n")
    print(dict(counts), "wrong:", wrong)
    missing = [kind for kind in KINDS if counts[kind] < EACH]
    sys.exit(1 if wrong or missing else 0)


def main():
    try:
        import nltk, numpy, scipy, seqeval, sklearn  # noqa: E401, F401
    except ImportError as e:
        print(e, "; see bench/peers/requirements.txt", file=sys.stderr)
        sys.exit(3)
    published_squad()
    if sys.argv[1] == "cases":
        for name, make in KINDS.items():
            rng = random.Random(name)
            for _ in range(EACH):
                print(json.dumps({"kind": name, **make(rng)}))
    else:
        compare(*sys.argv[2:])


main()
