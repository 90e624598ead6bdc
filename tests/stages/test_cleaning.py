from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.stages.cleaning import clean, rejection, scripts


PIECES = st.sampled_from(
    [
        "Question: ",
        "**Task 1:** ",
        "## Problem\n",
        "Q1. ",
        "Answer: ",
        "\n\n## Step 1: ",
        '"',
        "“",
        "”",
        "?",
        "\n",
        "```",
        "```py\n",
        *("What is 2 + 2", "Write a poem", " ", "Context: ", "because", "## Solution\n", "翻译", "x = 1"),
    ]
)
TEXTS = st.text(max_size=80) | st.lists(PIECES, max_size=12).map("".join)


@given(TEXTS)
def test_cleaning_a_clean_text_changes_nothing(text):
    assert clean(clean(text)) == clean(text)


@given(TEXTS)
def test_cleaning_only_takes_away(text):
    assert clean(text) in text


@given(TEXTS)
def test_cleaning_and_judging_never_fail_and_judge_the_same_twice(text):
    assert rejection(text) == rejection(text)
    cleaned = clean(text)
    assert (rejection(cleaned) == "empty") == (cleaned.strip() == "")
    assert cleaned == cleaned.strip()
    assert scripts(text) == scripts(text)


fenced = st.lists(PIECES.filter(lambda piece: "```" not in piece), max_size=6).map("".join)


@given(st.sampled_from(["What does this print?\n", "Fix it: ", "Explain this code.\n\n"]), fenced)
def test_nothing_inside_a_code_fence_is_cut(before, code):
    text = f"{before}```\n{code}\n```\nWhy?"
    assert f"```\n{code}\n```" in clean(text)


REQUESTS = [
    "Here is a paragraph from my essay:\nI goes to school by bus.\nCorrect the grammar.",
    'Here is the JSON I have:\n{"a": {"b": 1}}\nWrite a Python script that flattens it.',
    "Here are some customer reviews:\n- Great shoes.\n- Too small.\nClassify each one as positive or negative.",
    "Is there anything you would recommend for a beginner guitarist?",
    "Sure, exercise is healthy, but how much per week is too much?",
    "Of course, correlation is not causation. Explain the difference.",
    "I'm happy to help my neighbor move. What should I bring?",
    "1+1",
    "? is a wildcard in SQL LIKE, true or false",
    "What does <think> do in a prompt?",
    "Unfortunately, my landlord can't fix the heating until March. What can I do?",
    "Of course, children should learn on their own. But how can I help my son with fractions?",
    "Sure, money is not everything, but how can I be happy without a job?",
    "Unfortunately I cannot log in to my account since yesterday.",
    "Sure, but make it shorter.",
    "Based on the table you see below, compute the mean: 3 4 5",
    "Natürlich. Schreib mir bitte ein Gedicht über den Herbst.",
    "Claro, entiendo la teoría. Pero escribe un ejemplo en Python.",
    "Bien sûr, je comprends. Écris une lettre pour un poste de vendeur.",
    "Certo! Dammi una ricetta per la carbonara.",
    "Конечно. Напиши стихотворение о весне.",
    "好的，请给我推荐三本书",
    "对不起，我无法登录，怎么办",
    "もちろんです。次の文を英語に翻訳してください：私は学生です",
]
"""Requests that begin like an assistant's message, or in the middle of something."""


@pytest.mark.parametrize("text", REQUESTS)
def test_requests_with_an_unusual_beginning_are_accepted_unchanged(text):
    assert clean(text) == text
    assert rejection(text) is None


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("What is 2 + 2? The answer is: 4", "What is 2 + 2?"),
        ("Find x if 2x = 4.\n\nThe final answer is: $\\boxed{2}$", "Find x if 2x = 4."),
        ("Find x if 2x = 4. The final answer is $\\boxed{2}$.", "Find x if 2x = 4."),
        ("Find x if 2x = 4.\n$\\boxed{2}$", "Find x if 2x = 4."),
        ("Q: Who wrote Faust?\nA: Goethe", "Who wrote Faust?"),
        ("1. How do birds navigate?", "How do birds navigate?"),
    ],
)
def test_answers_on_the_same_line_and_boxed_ones_are_cut(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Write a README with these sections:\n# Solution\n# Answer",
        "Write a lab report. Use these headings.\n\n**Problem**\n**Solution**\n**Discussion**",
        'Why is "The answer is: 42" funny?',
        "The teacher said that the answer is: 12. Is she right?",
        "I mixed a drink.\nSolution: 5 g of salt in 100 ml of water.\nWhat is the concentration?",
        "Which is a color?\nA: red\nB: seven",
        "Q: What is 2 + 2?\nA: 4\nQ: What is 3 + 3?\nA:",
        "1. e4 e5 2. Nf3 Nc6: which opening is this?",
        "Write three riddles. Each has the form\n\nQuestion: …\nAnswer: …\n\nwithout numbers.",
        "Convert to JSON:\nname: Bob\nanswer: yes\nage: 3",
        "Make a card with two sides.\nFront: a word\nAnswer: [the word in French]",
    ],
)
def test_parts_that_are_asked_for_are_not_cut(text):
    assert clean(text) == text


HOSTILE = [
    "\n",
    " ",
    "\t",
    "#",
    "`",
    "*",
    "_",
    ".",
    "?",
    "answer:\n",
    "Question\n",
    "# \n",
    "```\n",
    "the answer is ",
    "you ",
]


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("before", ["", "Question", "What is it? ", "Sure! ", "Here is "])
def test_cleaning_takes_time_in_proportion_to_the_text(before, piece):
    """A pattern that takes quadratic time would not finish 100,000 characters."""
    text = f"{before}{piece * (100_000 // len(piece))}x"
    rejection(clean(text))


words = st.text("abc ,.;", min_size=1, max_size=30).filter(lambda text: text.strip())


@given(words, words)
def test_what_stands_around_a_question_mark_stays(before, after):
    text = f"x{before}? y{after}"
    assert clean(text) == text.strip()


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Question: What is 2+2?", "What is 2+2?"),
        ("**Question 1:** Why is the sky blue?\nAnswer: Because of Rayleigh.", "Why is the sky blue?"),
        ("## Problem\nFind x if 2x = 4.", "Find x if 2x = 4."),
        ("Q: Who wrote Faust?", "Who wrote Faust?"),
        ('"How do I cook rice?"', "How do I cook rice?"),
        ("What is 5 - 3?\n\n## Step 1: Subtract", "What is 5 - 3?"),
        ("Name a river.\n**Answer:** The Rhine", "Name a river."),
        ("Instruction 3: Write a haiku.", "Write a haiku."),
        ("“What is love?”", "What is love?"),
        ("«Où est la gare ?»", "Où est la gare ?"),
        ("「东京在哪里？」", "东京在哪里？"),
        ("Question: “Why?”\nAnswer: Because.", "Why?"),
        ("Which one?\nA) x\nB) y\n\nCorrect answer: A", "Which one?\nA) x\nB) y"),
        ("What is 2 + 2?\nSolution\nIt is 4.", "What is 2 + 2?"),
        ("Was ist das?\n\n### Response:\nDas ist gut.", "Was ist das?"),
        ("   What now?\n\n", "What now?"),
        ("Explain.\nassistant\nSure, here it is.", "Explain."),
    ],
)
def test_what_is_not_the_instruction_is_taken_off(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France? And of Spain? I need both for a quiz.",
        "I have this code. Why does it fail?\n\n```python\nx = [1, 2]\nprint(x[2])\n```\nPlease explain.",
        "Context: Anna has 3 cats.\nQuestion: How many legs do they have?",
        "Task: Summarize this.\nText: The fox jumped.",
        "What does this print?\n```\nAnswer: 3\n```\nExplain.",
        'He said "yes" and she said "no". Who was right?',
        "Reply in this format:\nAnswer: <number>\nWhat is 3 * 4?",
        "Problem solving is hard for me. How do I get better?",
        "First line?\nSecond line.\nThird line?",
        "Fix this: ```py\nAnswer: 3\n```\nplease",
        "~~~\nSolution: x\n~~~\nWhat is wrong here?",
        "Write a story with these sections:\nIntroduction\nExplanation\nEnd",
        'Translate the word "Solution" into French.',
        "'Tis the season. What does 'tis mean?'",
        '"A" or "B"',
        "Input: 5\nOutput: 25\nWrite the function.",
        "Text: The fox jumped.\nQuestion: Who jumped?",
        "Answer: yes or no. Is the sky green?",
        "Given the table below.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nWhat is b?",
    ],
)
def test_context_code_and_further_questions_stay(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Translate 'good morning' into Japanese: おはよう or こんばんは?",
        "什么是机器学习？",
        "日本の首都はどこですか？カタカナで答えてください。",
        "한국어로 시를 써 주세요.",
        "Какой город столица Франции?",
        "ما هي عاصمة مصر؟",
        "भारत की राजधानी क्या है?",
        "Translate 'Привет' to English.",
        "Solve $\\int_0^1 x^2 dx$ and show α, β ≤ π.",
        "def f(x): return x  # what does this do?",
        "12 * 7 = ?",
        "Why? 😀",
        "Summarize:\n- a\n- b",
        "¿Cómo se dice 'dog' en español?",
        "Is 7 a prime number?",
        "(a) What is a noun? (b) What is a verb?",
        "Surely there is a better way to sort. Which?",
        "Of course we need rain, but how much?",
        "请把“Good morning”翻译成中文。",
        "用Python写一个快速排序函数，并解释时间复杂度O(n log n)。",
        "已知α、β是锐角，且sin α=3/5，cos β=12/13，求sin(α+β)",
        "写诗",
        "你好",
        "解释一下什么是ＡＩ。",
        "ﾊﾛｰの意味は何ですか？",
        "このコードを直して：print('こんにちは'",
        "김치찌개는 어떻게 만들어요? 재료는 3인분으로 알려 주세요.",
        "'사랑'을 영어로 번역해 줘. (love인가요?)",
        "Напиши функцию на Python, которая складывает два числа.",
        "Сколько будет 12*7?",
        "اكتب قصيدة قصيرة عن البحر.",
        "ترجم 'Hello' إلى العربية.",
        "מה בירת צרפת?",
        "पायथन में लूप कैसे लिखें?",
        "ประเทศไทยมีกี่จังหวัด",
        "Τι είναι η φιλοσοφία;",
        "Wie heißt du? Und was heißt 'Straße' auf Englisch?",
        "Tại sao bầu trời có màu xanh?",
        "Qu'est-ce que l'apprentissage automatique ?",
        "Let $f: \\mathbb{R} \\to \\mathbb{R}$ be continuous. Prove that $\\int_a^b f = 0$.",
        "∫ x² dx = ?",
        "Σ from k=1 to n of k, in closed form?",
        "Is 𝐱ᵀ𝐀𝐱 ≥ 0 for all 𝐱 ∈ ℝⁿ?",
        "```python\nfor i in range(3): print(i)\n```",
        "SELECT * FROM users WHERE id = 1; -- is this safe?",
        "#include <stdio.h>\nint main() { return 0; }\nWhat does this do?",
        "!pip install torch fails. Why?",
        '{"a": [1, 2]} – is this valid JSON?',
        "@dataclass vs NamedTuple?",
        "%timeit in a script?",
        "/etc/passwd: what is in it?",
        "$5 in euros?",
        "€100 to yen",
        "...and what comes next?",
        "🎉 Plan a birthday party for my son! 🎂🎈",
        "😀😀😀 what does this mean",
        "Help",
        "Continue",
        "Thanks!",
        "1. Name three rivers.\n2. Name three lakes.",
        "- eggs\n- flour\n- milk\nWhat can I bake?",
        "a) 5\nb) 6\nWhich is prime?",
        "(1+2)*3 = ?",
        "-5 + 3 = ?",
        "[INSERT NAME], what would you say to him?",
        "Here is the code:\n```python\nx = 1\n```\nWhy does it fail?",
        "Here are some numbers:\n3, 5, 8\nWhich is even?",
        "Hi, how can I help my son sleep?",
        "Hello! Can you write me a poem?",
        "How can I help my dog lose weight?",
        "As an AI researcher, how do I start a paper?",
        "I am an AI engineer. Which GPU should I buy?",
        "What would you like to be if you were human?",
        "Sure-fire ways to save money?",
        "Is there something I can do about rust?",
        "You are a pirate. Tell me about your ship.",
        "I think, therefore I am: who said it?",
        "What does the HTML tag <thead> do?",
        "How do I use <b> and </b>?",
        "NASA stands for?",
    ],
)
def test_real_instructions_are_accepted(text):
    assert rejection(clean(text)) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("hi", "fragment"),
        (", and then the rest of it", "fragment"),
        ("??", "fragment"),
        ("<think>\nThe user wants", "think_tag"),
        ("What? </think>", "think_tag"),
        ("Sure, here is a list of ideas.", "assistant_voice"),
        ("Hello! How can I help you today?", "assistant_voice"),
        ("I'd be happy to help with that.", "assistant_voice"),
        ("As an AI language model, I cannot", "assistant_voice"),
        ("Hola мир 中文 what is это", "mixed_script"),
        ("การ 안녕 привет नमस्ते ok", "mixed_script"),
        ("\u200b\n", "fragment"),
        ("...", "fragment"),
        ("}", "fragment"),
        (") and so on", "fragment"),
        (": the answer is 5", "fragment"),
        ("你", "fragment"),
        ("---", "fragment"),
        ("😀", "fragment"),
        ("!!!", "fragment"),
        ("<thinking>hm</thinking> What?", "think_tag"),
        ("<|channel|>analysis", "think_tag"),
        ("Certainly! I can do that.", "assistant_voice"),
        ("Of course! Let me explain.", "assistant_voice"),
        ("Hi there! How may I assist you?", "assistant_voice"),
        ("Hello, how can I help today?", "assistant_voice"),
        ("How can I help you?", "assistant_voice"),
        ("I'm sorry, but I can't help with that.", "assistant_voice"),
        ("I'm an AI, so I have no feelings.", "assistant_voice"),
        ("I am an AI language model.", "assistant_voice"),
        ("Here are some ideas:\n1. Rest\n2. Run", "assistant_voice"),
        ("It seems like you forgot the text.", "assistant_voice"),
        ("What would you like to know about it?", "assistant_voice"),
        ("Is there anything else I can do for you?", "assistant_voice"),
        ("Sure! Which language would you like?", "assistant_voice"),
        ("I'm sorry, I cannot open links.", "assistant_voice"),
        ("I'm unable to access my training data directly.", "assistant_voice"),
        ("Hi! What can I help you with?", "assistant_voice"),
        ("好的，请提供更多细节，以便我帮助您。", "assistant_voice"),
        ("Natürlich! Hier sind drei Vorschläge:", "assistant_voice"),
        ("Claro, aquí tienes un ejemplo de código.", "assistant_voice"),
        ("ha " * 60, "repeated"),
        ("Name a bird. " + "Name a bird that flies. " * 20, "repeated"),
    ],
)
def test_what_is_no_instruction_is_rejected_with_its_reason(text, code):
    assert rejection(clean(text)) == code
