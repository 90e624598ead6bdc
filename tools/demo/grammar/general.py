"""Forms that ask for knowledge: concepts, skills, lists, countries, animals, history, elements."""
# ruff: noqa: D103 (a form is described by its name and its instructions)

from __future__ import annotations

import random

from .base import NUMBER_WORDS, Exchange, article, bullets, form, numbered, upper_first
from .facts import ANIMALS, COUNTRIES, ELEMENTS, HISTORY, LISTS
from .topics import CONCEPTS, SKILLS


PERSONS = (
    "a teacher", "a nurse", "a student", "a parent", "a beginner", "a farmer", "a retired engineer", "a busy manager",
    "a writer", "a young artist", "a shop owner", "a bus driver", "a biologist", "a journalist", "a cook", "a lawyer",
)  # fmt: skip
PURPOSES = (
    "for a class", "for a blog post", "for my notes", "for a short talk", "for a quiz", "for my children",
    "for a poster", "for an exam", "for a newsletter", "for a friend",
)  # fmt: skip
AUDIENCES = ("a child", "a beginner", "my grandmother", "a ten-year-old", "a new colleague", "a curious friend")

_TO_YOU = {"I": "you", "my": "your", "me": "you", "am": "are"}


def to_you(text: str) -> str:
    """Turn what someone says of themselves to the one who is spoken to: "my desk" becomes "your desk"."""
    return " ".join(_TO_YOU.get(word, word) for word in text.split(" "))


@form("general", 3.0)
def explain_concept(rng: random.Random) -> Exchange:
    name, subject, what, why, example = rng.choice(CONCEPTS)
    style = rng.randrange(5)
    audience = rng.choice(AUDIENCES)
    person, purpose = rng.choice(PERSONS), rng.choice(PURPOSES)
    definition = f"{upper_first(name)} is {what}."
    if style == 0:
        instruction = rng.choice([f"What is {name}?", f"Explain {name}.", f"What does {name} mean in {subject}?"])
        answer = f"{definition} It matters because {why}. One example is {example}."
    elif style == 1:
        instruction = rng.choice([f"Explain {name} to {audience}.", f"How would you explain {name} to {audience}?"])
        answer = f"Here is a way to explain it to {to_you(audience)}: {name} is {what}. Think of {example}."
    elif style == 2:
        instruction = rng.choice([f"Define {name} in one sentence.", f"In one sentence, what is {name}?"])
        answer = definition
    elif style == 3:
        instruction = f"I am {person} and I need a short explanation of {name} {purpose}."
        instruction += rng.choice(["", " Please include an example.", " Keep it simple."])
        answer = f"{definition} It matters because {why}. One example is {example}."
    else:
        instruction = rng.choice([f"Why is {name} important?", f"Why does {name} matter?"])
        answer = f"{upper_first(name)} is important because {why}. It is {what}."
    exchange = Exchange(
        "explain_concept", "Information seeking", "easy" if style == 2 else "medium", name, instruction, answer
    )
    if style != 0 and style != 3:
        exchange = exchange.then(
            rng.choice(["Can you give me an example?", "Please give an example.", "What would be an example?"]),
            f"Yes. An example of {name} is {example}.",
        )
    if style != 4:
        exchange = exchange.then(rng.choice(["Why is it important?", "Why does that matter?"]), f"Because {why}.")
    return exchange.then(
        rng.choice(["Can you say that in one sentence?", "Please make it shorter."]), definition, category="Editing"
    ).then(rng.choice(["Which field does it belong to?", "Which subject is that?"]), f"It belongs to {subject}.")


@form("general", 1.5)
def compare_concepts(rng: random.Random) -> Exchange:
    first = rng.choice(CONCEPTS)
    second = rng.choice([row for row in CONCEPTS if row[1] == first[1] and row is not first] or CONCEPTS)
    person = rng.choice(PERSONS)
    instruction = rng.choice(
        [
            f"What is the difference between {first[0]} and {second[0]}?",
            f"Compare {first[0]} and {second[0]}.",
            f"How does {first[0]} differ from {second[0]}? I am {person}.",
            f"Compare {first[0]} with {second[0]} in two short points.",
        ]
    )
    if "two short points" in instruction:
        answer = bullets([f"{upper_first(row[0])} is {row[2]}." for row in (first, second)])
    else:
        answer = f"{upper_first(first[0])} is {first[2]}, while {second[0]} is {second[2]}."
        answer += f" An example of the first is {first[4]}; an example of the second is {second[4]}."
    topic = f"{first[0]} and {second[0]}"
    exchange = Exchange("compare_concepts", "Information seeking", "hard", topic, instruction, answer)
    return exchange.then("Why is the first one important?", f"Because {first[3]}.").then(
        "Why does the second one matter?", f"Because {second[3]}."
    )


@form("general", 2.5)
def how_to(rng: random.Random) -> Exchange:
    skill, steps_text, tips_text, mistake = rng.choice(SKILLS)
    steps, tips = steps_text.split(";"), tips_text.split(";")
    person = rng.choice(PERSONS)
    instruction = rng.choice(
        [
            f"How do I get started with {skill}?",
            f"Give me step-by-step instructions for {skill}.",
            f"I am {person}. How can I begin with {skill}?",
            f"What are the first steps in {skill}?",
            f"I would like to try {skill} this year, but I have never done it before. Where do I start?",
        ]
    )
    answer = f"Here is how to get started with {skill}:\n\n{numbered([upper_first(step) + '.' for step in steps])}"
    number = rng.randrange(4)
    exchange = Exchange("how_to", "Advice seeking", "medium", skill, instruction, answer)
    return (
        exchange.then(f"What was step {number + 1} again?", f"Step {number + 1} is: {steps[number]}.")
        .then("Which mistake should I avoid?", f"Avoid this common mistake: {mistake}.")
        .then(
            rng.choice(["Do you have more tips?", "Can you give me some tips?"]),
            f"Some tips for {skill}:\n\n{bullets([upper_first(tip) + '.' for tip in tips])}",
        )
    )


@form("general", 1.5)
def tips(rng: random.Random) -> Exchange:
    skill, _, tips_text, mistake = rng.choice(SKILLS)
    count = rng.randint(2, 3)
    chosen = tips_text.split(";")[:count]
    person, purpose = rng.choice(PERSONS), rng.choice(PURPOSES)
    word = NUMBER_WORDS[count]
    instruction = rng.choice(
        [
            f"Give me {word} tips for {skill}.",
            f"List {count} tips for {skill} {purpose}.",
            f"What are {word} good tips for {person} who likes {skill}?",
        ]
    )
    answer = f"Here are {word} tips for {skill}:\n\n{numbered([upper_first(tip) + '.' for tip in chosen])}"
    exchange = Exchange("tips", "Advice seeking", "easy", skill, instruction, answer)
    return exchange.then("What should I not do?", f"Try to avoid {mistake}.")


@form("general", 1.0)
def common_mistake(rng: random.Random) -> Exchange:
    skill, _, tips_text, mistake = rng.choice(SKILLS)
    instruction = rng.choice(
        [
            f"What is a common mistake in {skill}?",
            f"Which mistake do beginners make in {skill}?",
            f"Name a typical mistake in {skill} and how to do better.",
        ]
    )
    answer = f"A common mistake in {skill} is {mistake}. To do better: {tips_text.split(';')[0]}."
    return Exchange("common_mistake", "Information seeking", "easy", skill, instruction, answer)


@form("general", 2.0)
def list_items(rng: random.Random) -> Exchange:
    kind, items_text = rng.choice(LISTS)
    items = items_text.split(", ")
    count = rng.randint(2, 6)
    word, purpose = NUMBER_WORDS[count], rng.choice(PURPOSES)
    style = rng.randrange(4)
    if style == 0:
        instruction = rng.choice([f"List {word} {kind}.", f"List {count} {kind} {purpose}."])
        answer = numbered([upper_first(item) for item in items[:count]])
    elif style == 1:
        instruction = rng.choice([f"Name {word} {kind}.", f"Can you name {word} {kind} {purpose}?"])
        answer = f"{upper_first(word)} {kind} are {', '.join(items[: count - 1])} and {items[count - 1]}."
    elif style == 2:
        instruction = rng.choice(
            [f"Give me {count} {kind}, separated by commas.", f"{upper_first(word)} {kind}, one line."]
        )
        answer = ", ".join(items[:count])
    else:
        instruction = f"Write a list of {word} {kind} {purpose}, with dashes."
        answer = bullets(items[:count])
    exchange = Exchange("list_items", "Information seeking", "very easy", kind, instruction, answer)
    return exchange.then(
        rng.choice(["Give me two more.", "Two more, please."]),
        f"Two more are {items[count]} and {items[count + 1]}." if count < 7 else "I have no more.",
    ).then("Which one comes last in the alphabet?", f"{upper_first(max(items[:count], key=str.lower))}.")


@form("general", 2.0)
def country_fact(rng: random.Random) -> Exchange:
    name, capital, continent, language, currency = rng.choice(COUNTRIES)
    facts = {
        "capital": (
            [f"What is the capital of {name}?", f"Which city is the capital of {name}?", f"Tell me the capital of {name}."],
            f"The capital of {name} is {capital}.",
        ),
        "continent": (
            [f"On which continent is {name}?", f"Which continent does {name} belong to?"],
            f"{name} is in {continent}.",
        ),
        "language": (
            [f"Which language do people speak in {name}?", f"What is the main language of {name}?"],
            f"The main language of {name} is {language}.",
        ),
        "currency": (
            [f"What currency is used in {name}?", f"How do people pay in {name}?"],
            f"People in {name} pay with the {currency}.",
        ),
        "profile": (
            [f"Give me a short profile of {name}.", f"Write three facts about {name} {rng.choice(PURPOSES)}."],
            bullets([f"Capital: {capital}", f"Continent: {continent}", f"Main language: {language}"]),
        ),
    }  # fmt: skip
    kind = rng.choice(list(facts))
    instruction, answer = rng.choice(facts[kind][0]), facts[kind][1]
    exchange = Exchange("country_fact", "Information seeking", "very easy", name, instruction, answer)
    if kind not in ("capital", "profile"):
        exchange = exchange.then("And what is its capital?", f"The capital of {name} is {capital}.")
    if kind != "currency":
        exchange = exchange.then("Which currency do they use there?", f"They use the {currency}.")
    return exchange


@form("general", 1.5)
def animal_fact(rng: random.Random) -> Exchange:
    name, group, legs, food, home = rng.choice(ANIMALS)
    one = article(name)
    kind = rng.randrange(4)
    if kind == 0:
        instruction = rng.choice([f"What does {one} eat?", f"What is the diet of {one}?"])
        answer = f"{upper_first(one)} eats {food}."
    elif kind == 1:
        instruction = rng.choice([f"Where does {one} live?", f"What is the habitat of {one}?"])
        answer = (
            f"{upper_first(one)} lives in {home}." if not home.startswith("many") else "It lives in many habitats."
        )
    elif kind == 2:
        instruction = rng.choice([f"What kind of animal is {one}?", f"Is {one} a mammal?"])
        answer = f"{upper_first(one)} is {article(group)}."
        if instruction.startswith("Is"):
            answer = f"{'Yes' if group == 'mammal' else 'No'}, {one} is {article(group)}."
    else:
        instruction = rng.choice([f"How many legs does {one} have?", f"Tell me the number of legs of {one}."])
        answer = f"{upper_first(one)} has {NUMBER_WORDS[int(legs)] if legs != '0' else 'no'} legs."
    exchange = Exchange("animal_fact", "Information seeking", "very easy", name, instruction, answer)
    return exchange if kind == 0 else exchange.then("And what does it eat?", f"It eats {food}.")


@form("general", 1.5)
def known_fact(rng: random.Random) -> Exchange:
    question, answer = rng.choice(HISTORY)
    ending = rng.choice(["", "", " Answer in one sentence.", f" I need it {rng.choice(PURPOSES)}."])
    difficulty = "medium" if question.startswith("Why") else "easy"
    return Exchange("known_fact", "Information seeking", difficulty, question.rstrip("?"), question + ending, answer)


@form("general", 0.7)
def element_fact(rng: random.Random) -> Exchange:
    name, symbol, use = rng.choice(ELEMENTS)
    kind = rng.randrange(3)
    if kind == 0:
        instruction, answer = f"What is the chemical symbol of {name}?", f"The symbol of {name} is {symbol}."
    elif kind == 1:
        instruction, answer = f"Which element has the symbol {symbol}?", f"{symbol} stands for {name}."
    else:
        instruction, answer = (
            f"What is {name} used for?",
            f"{upper_first(name)} is used for {use}, among other things.",
        )
    exchange = Exchange("element_fact", "Information seeking", "easy", name, instruction, answer)
    return (
        exchange if kind == 2 else exchange.then("What is it used for?", f"It is used for {use}, among other things.")
    )
