#!/usr/bin/env bash
# Fine-tunes on real data, from scratch and from a pre-trained model, three seeds each; prints a Markdown table.
#
#   bench/tasks.sh --data DIR --english MODEL --chinese MODEL --work DIR [--electra BIN] [--tasks "sst2 rte"] [--trials 3]
#
# DIR holds a folder a task: sst2 cola mrpc rte conll2000 wnut17 msra_ner chnsenticorp cmrc2018 xquad. A model is the
# `discriminator` of a pre-training run; without one of a language its tasks are left out. A finished row in --work is
# kept: the same command goes on where it stopped, and one with another model, other trials or settings is refused; of rows
# from scratch only the sizes of the model count.
# Further arguments of `electra finetune` may stand in FINETUNE.
#
# Both start with the same settings: all layers learn at 1e-4. The defaults suit a model that has been trained for weeks; at
# their rate twelve layers learn nothing from scratch. FINETUNE has the last word.
#
# CMRC's own training set is not among the data: its dev set is trained on, a tenth of the articles held out to choose
# by, and the trial set is scored. XQuAD is only predicted.

set -euo pipefail

electra=target/release/electra
tasks="sst2 cola mrpc rte conll2000 wnut17 msra chnsenticorp cmrc2018"
trials=3
english="" chinese="" data="" work=""
while [ $# -gt 0 ]; do
  case "$1" in
    --data) data="$2" ;;
    --english) english="$2" ;;
    --chinese) chinese="$2" ;;
    --work) work="$2" ;;
    --electra) electra="$2" ;;
    --tasks) tasks="$2" ;;
    --trials) trials="$2" ;;
    *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
  esac
  shift 2
done
if [ -z "$data" ] || [ -z "$work" ]; then
  echo "give --data and --work; see the head of $0" >&2
  exit 2
fi
mkdir -p "$work"

files() { # TASK: its train, dev and test file
  case "$1" in
    sst2) echo "sst2/train.tsv sst2/dev.tsv sst2/test.tsv" ;;
    cola) echo "cola/in_domain_train.tsv cola/in_domain_dev.tsv cola/out_of_domain_dev.tsv" ;;
    mrpc) echo "mrpc/train.txt - mrpc/test.txt" ;;
    rte) echo "rte/train.tsv - rte/test.tsv" ;;
    conll2000) echo "conll2000/train.txt - conll2000/test.txt" ;;
    wnut17) echo "wnut17/train.conll wnut17/dev.conll wnut17/test.conll" ;;
    msra) echo "msra_ner/train.txt msra_ner/dev.txt msra_ner/test.txt" ;;
    chnsenticorp) echo "chnsenticorp/htl_all.csv - chnsenticorp/htl_all.csv" ;;
    cmrc2018) echo "cmrc2018/dev.json - cmrc2018/trial.json" ;;
    *) echo "unknown task $1" >&2; exit 2 ;;
  esac
}

format() { # TASK: options of reading
  case "$1" in
    mrpc) echo "--format tsv" ;;
  esac
}

number() { # KEY: of the JSON object on stdin
  sed -E "s/.*\"$1\":(-?[0-9.eE+-]+|null).*/\1/"
}

row() { # TASK START MODEL OPTIONS...: fine-tunes and scores, unless done
  local task="$1" start="$2" model="$3" train dev test
  shift 3
  local out="$work/$task-$start" line="$work/$task-$start.row" settings
  local decides=("$model/config.json")
  if [ "$start" != scratch ]; then
    decides+=("$model/model.safetensors")
  fi
  settings="$(cat "${decides[@]}" | cksum) trials $trials ${FINETUNE:-}"
  if [ "$(cat "$out.settings" 2>/dev/null || echo "$settings")" != "$settings" ]; then
    echo "$out was begun with another model, other trials or settings: give another --work" >&2
    exit 2
  fi
  echo "$settings" >"$out.settings"
  if [ ! -s "$line" ]; then
    read -r train dev test <<<"$(files "$task")"
    local given=(--train "$data/$train")
    if [ "$dev" != - ]; then
      given+=(--dev "$data/$dev")
    fi
    # shellcheck disable=SC2046,SC2086
    "$electra" finetune --model "$model" --task "$task" "${given[@]}" --out "$out" --trials "$trials" \
      $(format "$task") --json --set learning_rate=1e-4 --set layerwise_lr_decay=1 "$@" ${FINETUNE:-} >"$out.json"
    local scored="–"
    if [ "$test" != "$train" ]; then
      # shellcheck disable=SC2046
      scored="$("$electra" evaluate --model "$out" --data "$data/$test" $(format "$task") --json)"
      echo "$scored" >"$out.test.json"
      scored="$(echo "$scored" | tr -d '{}"' | tr ',' '\n' | grep -v '^task:' |
        awk -F: '{ printf "%s%s %s", (NR > 1 ? ", " : ""), $1, ($2 ~ /\./ ? sprintf("%.4f", $2) : $2) }')"
    fi
    local summary
    summary="$(sed -E 's/.*"summary":(\{[^}]*\}).*/\1/' "$out.json")"
    # shellcheck disable=SC2046
    printf '| %s | %s | %.4f | %.4f | %.4f | %s |\n' "$task" "$start" \
      $(for key in median best deviation; do number "$key" <<<"$summary"; done) "$scored" >"$line.new"
    mv "$line.new" "$line"
  fi
  cat "$line"
}

echo "| task | start | median | best | deviation | best model on the test file |"
echo "|---|---|---|---|---|---|"
for task in $tasks; do
  case "$task" in
    msra | chnsenticorp | cmrc2018) model="$chinese" ;;
    *) model="$english" ;;
  esac
  if [ -z "$model" ]; then
    echo "$task: no model of its language is given" >&2
    continue
  fi
  row "$task" scratch "$model" --scratch
  row "$task" pre-trained "$model"
done
if [ -d "$work/cmrc2018-pre-trained" ] && [ ! -s "$work/xquad.zh.jsonl" ]; then
  "$electra" predict --model "$work/cmrc2018-pre-trained" --as answer --task cmrc2018 --input "$data/xquad/zh.json" \
    --json >"$work/xquad.zh.jsonl.new"
  mv "$work/xquad.zh.jsonl.new" "$work/xquad.zh.jsonl"
fi
