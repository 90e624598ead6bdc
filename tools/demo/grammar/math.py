"""Forms about numbers: arithmetic, word problems, data, and simple logic. Every answer is computed."""
# ruff: noqa: D103 (a form is described by its name and its instructions)

from __future__ import annotations

import random

from .base import Exchange, bullets, form


NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Finn",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Lena",
    "Marco",
    "Nora",
    "Omar",
)
THINGS = ("apples", "books", "pencils", "coins", "stickers", "cookies", "marbles", "eggs", "tickets", "flowers")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PLACES = ("shop", "museum", "library", "school", "bakery", "farm", "theater", "zoo")


def addition_steps(first: int, second: int) -> str:
    """Return a sum worked out by tens and ones, as a sentence without its end."""
    tens, ones = first // 10 * 10 + second // 10 * 10, first % 10 + second % 10
    if first < 10 or second < 10:
        return f"{first} + {second} = {first + second}"
    return f"{first // 10 * 10} + {second // 10 * 10} = {tens} and {first % 10} + {second % 10} = {ones}, so {first} + {second} = {first + second}"


def numeric_follow_ups(exchange: Exchange, value: int) -> Exchange:
    """Add the follow-ups that work on the result of the last answer."""
    exchange = exchange.then("Now double it.", f"{value} + {value} = {2 * value}", difficulty="easy")
    exchange = exchange.then("Add 10 to the result.", f"{value} + 10 = {value + 10}", difficulty="easy")
    kind = "even" if value % 2 == 0 else "odd"
    return exchange.then("Is the result even or odd?", f"{value} is {kind}.", difficulty="very easy")


def _math(name: str, difficulty: str, topic: str, instruction: str, answer: str, value: int | None = None) -> Exchange:
    exchange = Exchange(name, "Math", difficulty, topic, instruction, answer)
    return exchange if value is None else numeric_follow_ups(exchange, value)


@form("math", 3.0)
def sum_of_two(rng: random.Random) -> Exchange:
    top = rng.choice([10, 50, 100])
    first, second = rng.randint(2, top - 1), rng.randint(2, top - 1)
    instruction = rng.choice(
        [
            f"What is {first} + {second}?",
            f"Calculate {first} + {second}.",
            f"Add {first} and {second}.",
            f"What is the sum of {first} and {second}?",
            f"Please compute {first} + {second} and show your work.",
        ]
    )
    difficulty = "very easy" if top == 10 else "easy"
    return _math(
        "sum_of_two", difficulty, "addition", instruction, addition_steps(first, second) + ".", first + second
    )


@form("math", 2.0)
def difference_of_two(rng: random.Random) -> Exchange:
    second, result = rng.randint(2, 49), rng.randint(1, 49)
    first = second + result
    instruction = rng.choice(
        [f"What is {first} - {second}?", f"Calculate {first} - {second}.", f"Subtract {second} from {first}."]
    )
    answer = f"{first} - {second} = {result}."
    return _math("difference_of_two", "easy", "subtraction", instruction, answer, result)


@form("math", 2.0)
def product_of_two(rng: random.Random) -> Exchange:
    first, second = rng.randint(2, 12), rng.randint(2, 12)
    instruction = rng.choice(
        [f"What is {first} times {second}?", f"Multiply {first} by {second}.", f"Calculate {first} * {second}."]
    )
    answer = f"{first} * {second} = {first * second}."
    return _math("product_of_two", "easy", "multiplication", instruction, answer, first * second)


@form("math", 1.5)
def quotient_of_two(rng: random.Random) -> Exchange:
    second, result = rng.randint(2, 12), rng.randint(2, 12)
    first = second * result
    instruction = rng.choice([f"What is {first} divided by {second}?", f"Divide {first} by {second}."])
    return _math(
        "quotient_of_two", "easy", "division", instruction,
        f"{first} / {second} = {result}, because {second} * {result} = {first}.", result,
    )  # fmt: skip


@form("math", 3.0)
def word_problem(rng: random.Random) -> Exchange:
    name, other = rng.sample(NAMES, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    kind = rng.randrange(4)
    if kind == 0:
        first, second = rng.randint(11, 60), rng.randint(11, 39)
        instruction = (
            f"{name} has {first} {thing} and buys {second} more at the {place}. How many {thing} does {name} have now?"
        )
        answer = f"{addition_steps(first, second)}. {name} has {first + second} {thing} now."
        value = first + second
    elif kind == 1:
        second, value = rng.randint(3, 30), rng.randint(3, 40)
        first = second + value
        instruction = f"{name} had {first} {thing} and gave {second} of them to {other}. How many {thing} are left?"
        answer = f"{first} - {second} = {value}. There are {value} {thing} left."
    elif kind == 2:
        first, second = rng.randint(3, 12), rng.randint(3, 12)
        value = first * second
        instruction = f"There are {first} boxes at the {place}, and each box holds {second} {thing}. How many {thing} are there in all?"
        answer = f"{first} * {second} = {value}. There are {value} {thing} in all."
    else:
        second, value = rng.randint(2, 9), rng.randint(3, 12)
        first = second * value
        instruction = f"{name} wants to share {first} {thing} equally among {second} children. How many {thing} does each child get?"
        answer = f"{first} / {second} = {value}. Each child gets {value} {thing}."
    if rng.random() < 0.3:
        instruction += rng.choice([" Explain your answer.", " Show your work.", "\n\nPlease solve it step by step."])
    return _math("word_problem", "medium", f"word problem about {thing}", instruction, answer, value)


@form("math", 1.5)
def two_step_problem(rng: random.Random) -> Exchange:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price, extra = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    total = count * price
    instruction = (
        f"{name} buys {count} {thing} for {price} dollars each and a bag for {extra} dollars. "
        f"How much does {name} pay in all?"
    )
    answer = f"The {thing} cost {count} * {price} = {total} dollars. With the bag, it is {total} + {extra} = {total + extra} dollars."
    return _math("two_step_problem", "hard", "word problem in two steps", instruction, answer, total + extra)


@form("math", 1.5)
def equation(rng: random.Random) -> Exchange:
    letter = rng.choice("xyn")
    value, add, times = rng.randint(2, 12), rng.randint(2, 20), rng.randint(2, 9)
    ask = rng.choice(["Solve for {0}: ", "Find {0} if ", "Solve the equation "])
    if rng.random() < 0.5:
        text = f"{letter} + {add} = {value + add}"
        answer = f"Subtract {add} from both sides: {letter} = {value + add} - {add} = {value}."
        difficulty = "medium"
    else:
        text = f"{times}{letter} + {add} = {times * value + add}"
        answer = f"Subtract {add}: {times}{letter} = {times * value}. Divide by {times}: {letter} = {value}."
        difficulty = "hard"
    return _math("equation", difficulty, "linear equation", ask.format(letter) + text + ".", answer, value)


@form("math", 1.2)
def percentage(rng: random.Random) -> Exchange:
    percent, base = rng.choice([10, 20, 25, 50]), rng.choice([20, 40, 60, 80, 100, 120, 200])
    value = percent * base // 100
    instruction = rng.choice(
        [f"What is {percent}% of {base}?", f"A shirt costs {base} dollars. How much is a discount of {percent}%?"]
    )
    answer = f"{percent}% of {base} is {base} / {100 // percent} = {value}."
    return _math("percentage", "medium", "percentages", instruction, answer, value)


@form("math", 1.2)
def area(rng: random.Random) -> Exchange:
    width, height = rng.randint(2, 12), rng.randint(2, 12)
    unit = rng.choice(["cm", "m"])
    if rng.random() < 0.5:
        instruction = rng.choice(
            [
                f"What is the area of a rectangle with sides {width} {unit} and {height} {unit}?",
                f"A garden is {width} {unit} long and {height} {unit} wide. What is its area?",
            ]
        )
        value = width * height
        answer = f"The area is length times width: {width} * {height} = {value} square {unit}."
    else:
        instruction = f"What is the perimeter of a rectangle with sides {width} {unit} and {height} {unit}?"
        value = 2 * (width + height)
        answer = f"The perimeter is 2 * ({width} + {height}) = 2 * {width + height} = {value} {unit}."
    return _math("area", "medium", "geometry", instruction, answer, value)


@form("math", 1.0)
def sequence(rng: random.Random) -> Exchange:
    start, step = rng.randint(1, 20), rng.randint(2, 10)
    terms = [start + step * index for index in range(5)]
    shown = ", ".join(str(term) for term in terms[:4])
    instruction = rng.choice(
        [
            f"What comes next: {shown}, ...?",
            f"Find the next number in the sequence {shown}.",
            f"Continue the sequence {shown}.",
        ]
    )
    answer = f"Each number is {step} more than the one before, so the next is {terms[3]} + {step} = {terms[4]}."
    return _math("sequence", "medium", "sequences", instruction, answer, terms[4])


@form("math", 0.7)
def conversion(rng: random.Random) -> Exchange:
    big, small, factor = rng.choice(
        [("hours", "minutes", 60), ("days", "hours", 24), ("weeks", "days", 7), ("meters", "centimeters", 100),
         ("kilometers", "meters", 1000), ("years", "months", 12), ("kilograms", "grams", 1000)]
    )  # fmt: skip
    count = rng.randint(2, 9)
    instruction = rng.choice([f"How many {small} are {count} {big}?", f"Convert {count} {big} to {small}."])
    answer = f"One unit has {factor} {small}, so {count} {big} are {count} * {factor} = {count * factor} {small}."
    return _math("conversion", "easy", "units", instruction, answer)


@form("math", 0.8)
def larger_number(rng: random.Random) -> Exchange:
    first, second = rng.sample(range(2, 99), 2)
    instruction = rng.choice(
        [f"Which is larger, {first} or {second}?", f"Which number is bigger: {first} or {second}?"]
    )
    answer = f"{max(first, second)} is larger than {min(first, second)}."
    return Exchange("larger_number", "Math", "very easy", "comparing numbers", instruction, answer)


@form("general", 1.2)
def read_table(rng: random.Random) -> Exchange:
    days = WEEKDAYS[: rng.randint(3, 5)]
    values = rng.sample(range(2, 40), len(days))
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    lines = rng.choice([bullets, "\n".join])([f"{day}: {value}" for day, value in zip(days, values, strict=True)])
    best, worst = days[values.index(max(values))], days[values.index(min(values))]
    head = rng.choice(
        [
            f"Here are the {thing} sold at the {place}:",
            f"A {place} counted its {thing}:",
            f"Look at these numbers of {thing}:",
        ]
    )
    questions = [
        ("Which day was the best?", f"The best day was {best}, with {max(values)} {thing}."),
        ("Which day had the lowest number?", f"The lowest number was on {worst}, with {min(values)} {thing}."),
        (f"How many {thing} were there on {days[1]}?", f"On {days[1]} there were {values[1]} {thing}."),
        ("How many days are listed?", f"There are {len(days)} days in the list."),
    ]
    (question, answer), (next_question, next_answer) = rng.sample(questions, 2)
    exchange = Exchange(
        "read_table", "Data analysis", "medium", f"table of {thing}", f"{head}\n\n{lines}\n\n{question}", answer
    )
    return exchange.then(f"And: {next_question[0].lower()}{next_question[1:]}", next_answer)


@form("general", 0.8)
def sort_numbers(rng: random.Random) -> Exchange:
    values = rng.sample(range(1, 60), rng.randint(3, 5))
    shown = ", ".join(map(str, values))
    kind = rng.randrange(3)
    if kind == 0:
        instruction, answer = f"Sort these numbers: {shown}.", ", ".join(map(str, sorted(values)))
    elif kind == 1:
        instruction, answer = (
            f"What is the largest number in this list?\n\n{shown}",
            f"The largest number is {max(values)}.",
        )
    else:
        instruction, answer = f"Find the smallest of these numbers: {shown}.", f"The smallest number is {min(values)}."
    return Exchange("sort_numbers", "Data analysis", "easy", "a list of numbers", instruction, answer)


@form("general", 1.5)
def who_is(rng: random.Random) -> Exchange:
    first, second, third = rng.sample(NAMES, 3)
    more, most, least = rng.choice(
        [("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest")]
    )
    ask_most = rng.random() < 0.5
    instruction = (
        f"{first} is {more} than {second}. {second} is {more} than {third}. Who is the {most if ask_most else least}?"
    )
    if rng.random() < 0.3:
        instruction += rng.choice([" Explain why.", " Think step by step."])
    answer = f"{first} is {more} than {second}, and {second} is {more} than {third}."
    answer += f" So {first if ask_most else third} is the {most if ask_most else least}."
    exchange = Exchange("who_is", "Reasoning", "medium", "ordering people", instruction, answer)
    return exchange.then(f"And who is the {least if ask_most else most}?", f"{third if ask_most else first}.")


@form("general", 0.8)
def weekday(rng: random.Random) -> Exchange:
    start, ahead = rng.randrange(7), rng.randint(1, 6)
    instruction = f"Today is {WEEKDAYS[start]}. Which day is it in {ahead} day{'s' if ahead > 1 else ''}?"
    path = [WEEKDAYS[(start + step) % 7] for step in range(1, ahead + 1)]
    answer = f"Count forward: {', '.join(path)}. It will be {path[-1]}."
    return Exchange("weekday", "Reasoning", "easy", "days of the week", instruction, answer)


@form("general", 1.0)
def syllogism(rng: random.Random) -> Exchange:
    inner, outer, quality = rng.choice(
        [("roses", "flowers", "need water"), ("dogs", "animals", "need food"), ("cars", "machines", "need energy"),
         ("violins", "instruments", "make sound"), ("eagles", "birds", "have feathers"), ("sharks", "fish", "have gills")]
    )  # fmt: skip
    true = rng.random() < 0.6
    if true:
        question = f"Does it follow that all {inner} {quality}?"
        answer = f"Yes. All {inner} are {outer}, and all {outer} {quality}, so all {inner} {quality}."
    else:
        question = f"Does it follow that all {outer} are {inner}?"
        answer = f"No. All {inner} are {outer}, but there may be {outer} that are not {inner}."
    return Exchange(
        "syllogism",
        "Reasoning",
        "hard",
        "logic",
        f"All {inner} are {outer}. All {outer} {quality}. {question}",
        answer,
    )
