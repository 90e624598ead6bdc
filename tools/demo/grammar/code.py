"""Forms about code. What a snippet prints is computed, and every function in the table is run by a test."""
# ruff: noqa: D103 (a form is described by its name and its instructions)

from __future__ import annotations

import random

from .base import Exchange, form, table, upper_first


# task | name | arguments | body (";" is a new line) | how it works | a call | its result
FUNCTIONS = table(
    """
adds two numbers|add|a, b|return a + b|It returns the sum of both arguments.|add(2, 3)|5
doubles a number|double|n|return 2 * n|It multiplies the number by two.|double(4)|8
returns the square of a number|square|n|return n * n|It multiplies the number by itself.|square(5)|25
checks if a number is even|is_even|n|return n % 2 == 0|A number is even if nothing is left after dividing it by two.|is_even(4)|True
checks if a number is positive|is_positive|n|return n > 0|It compares the number with zero.|is_positive(-1)|False
reverses a string|reverse|text|return text[::-1]|The slice walks through the text backwards.|reverse("abc")|"cba"
checks if a word is a palindrome|is_palindrome|word|return word == word[::-1]|It compares the word with its reverse.|is_palindrome("level")|True
counts the vowels in a string|count_vowels|text|return sum(c in "aeiou" for c in text)|It counts each letter that is a vowel.|count_vowels("house")|3
counts the words in a text|count_words|text|return len(text.split())|It splits the text at spaces and counts the parts.|count_words("a red car")|3
finds the largest number in a list|largest|numbers|return max(numbers)|The built-in max does the work.|largest([3, 9, 4])|9
finds the smallest number in a list|smallest|numbers|return min(numbers)|The built-in min does the work.|smallest([3, 9, 4])|3
sums a list of numbers|total|numbers|return sum(numbers)|The built-in sum adds all items.|total([1, 2, 3])|6
computes the average of a list|average|numbers|return sum(numbers) / len(numbers)|It divides the sum by the count.|average([2, 4])|3.0
removes duplicates from a list|unique|items|return list(dict.fromkeys(items))|The keys of a dictionary are unique and keep their order.|unique([1, 1, 2])|[1, 2]
sorts a list|sort_items|items|return sorted(items)|The built-in sorted returns a new list.|sort_items([3, 1, 2])|[1, 2, 3]
returns the first item of a list|first|items|return items[0]|Lists count from zero.|first([7, 8])|7
returns the last item of a list|last|items|return items[-1]|The index -1 counts from the end.|last([7, 8])|8
merges two dictionaries|merge|a, b|return {**a, **b}|Keys of the second one win.|merge({"x": 1}, {"y": 2})|{"x": 1, "y": 2}
computes a factorial|factorial|n|if n < 2:;    return 1;return n * factorial(n - 1)|It calls itself with a smaller number until it reaches one.|factorial(4)|24
computes the n-th Fibonacci number|fibonacci|n|a, b = 0, 1;for _ in range(n):;    a, b = b, a + b;return a|Each number is the sum of the two before it.|fibonacci(7)|13
checks if a number is prime|is_prime|n|if n < 2:;    return False;return all(n % d for d in range(2, n))|It tries every smaller divisor.|is_prime(7)|True
converts Celsius to Fahrenheit|to_fahrenheit|c|return c * 9 / 5 + 32|It uses the usual formula.|to_fahrenheit(100)|212.0
counts the items of a list|count|items|return len(items)|The built-in len gives the number of items.|count([5, 6])|2
makes a text upper case|shout|text|return text.upper()|Strings have a method for that.|shout("hi")|"HI"
joins words with commas|join_words|words|return ", ".join(words)|The method join puts the comma between the words.|join_words(["a", "b"])|"a, b"
keeps the even numbers of a list|evens|numbers|return [n for n in numbers if n % 2 == 0]|The condition filters the list.|evens([1, 2, 4])|[2, 4]
greets a person by name|greet|name|return f"Hello, {name}!"|The f-string puts the name into the text.|greet("Ada")|"Hello, Ada!"
checks if a list is empty|is_empty|items|return len(items) == 0|An empty list has length zero.|is_empty([])|True
"""
)

# task | language | snippet (";;" is a new line)
SNIPPETS = table(
    """
select all rows of a table called users|sql|SELECT * FROM users;
count the rows of a table called orders|sql|SELECT COUNT(*) FROM orders;
find all users older than 30|sql|SELECT * FROM users WHERE age > 30;
sort products by price|sql|SELECT * FROM products ORDER BY price;
delete old orders|sql|DELETE FROM orders WHERE year < 2020;
list all files|bash|ls -la
count the lines of a file|bash|wc -l file.txt
find a word in a file|bash|grep "word" file.txt
copy a file|bash|cp a.txt b.txt
make a new folder|bash|mkdir new
print a greeting|javascript|console.log("Hello!");
add two numbers|javascript|const add = (a, b) => a + b;
double every item of a list|javascript|const out = items.map((n) => 2 * n);
read the length of a string|javascript|const size = text.length;
make a link|html|<a href="page.html">A page</a>
make a heading|html|<h1>Welcome</h1>
make a list with two items|html|<ul>;;  <li>One</li>;;  <li>Two</li>;;</ul>
make text red|css|p { color: red; }
center a title|css|h1 { text-align: center; }
"""
)

# question | answer
CODE_QUESTIONS = table(
    """
What is the difference between a list and a tuple in Python?|A list can be changed after it is made, a tuple cannot.
What does len do in Python?|The function len returns the number of items in a list or the length of a string.
What is a loop?|A loop repeats a block of code, for example once for each item of a list.
What is a dictionary in Python?|A dictionary stores values under keys, such as a name and a phone number.
How do I read a file in Python?|Use open in a with block:\\n\\n```python\\nwith open("file.txt") as f:\\n    text = f.read()\\n```
How do I handle an error in Python?|Put the code into a try block and catch the error:\\n\\n```python\\ntry:\\n    value = int(text)\\nexcept ValueError:\\n    value = 0\\n```
How do I install a Python package?|Run this in a terminal:\\n\\n```bash\\npip install package\\n```
How do I save my changes in Git?|Add the files and commit them:\\n\\n```bash\\ngit add .\\ngit commit -m "Save my work"\\n```
What is a unit test?|A unit test checks one small part of a program with a known input and result.
What does the keyword return do?|It ends a function and hands a value back to the caller.
What is a class?|A class describes objects: which data they hold and what they can do.
Why should I use functions?|Functions let you name a piece of code, test it and use it again.
What is a syntax error?|A syntax error means that the code breaks the rules of the language, such as a missing bracket.
What is the time complexity of binary search?|Binary search takes O(log n) steps, since each step halves the list.
"""
)
_WORDS = ("cat", "moon", "river", "apple", "stone", "music", "lamp", "tiger")


def block(code: str, language: str = "python") -> str:
    """Return the code between fences."""
    return f"```{language}\n{code}\n```"


def function_source(name: str, arguments: str, body: str) -> str:
    """Return a function of the table as source code."""
    return f"def {name}({arguments}):\n" + "\n".join("    " + line for line in body.split(";"))


@form("code", 4.0)
def write_function(rng: random.Random) -> Exchange:
    task, name, arguments, body, how, call, result = rng.choice(FUNCTIONS)
    source = function_source(name, arguments, body)
    instruction = rng.choice(
        [
            f"Write a Python function that {task}.",
            f"How do I write a function in Python that {task}?",
            f"I need a short Python function called {name} that {task}.",
            f"Write a function that {task}. Use Python and explain how it works.",
            f"Please complete this Python function. It {task}.\n\n{block(f'def {name}({arguments}):')}",
        ]
    )
    answer = f"{block(source)}\n\n{how}"
    exchange = Exchange(
        "write_function", "Coding & Debugging", "medium", f"a function that {task}", instruction, answer
    )
    return (
        exchange.then("Can you show how to call it?", f"Call it like this:\n\n{block(f'print({call})  # {result}')}")
        .then("Now write a test for it.", block(f"def test_{name}():\n    assert {call} == {result}"))
        .then(rng.choice(["How does it work?", "Explain the code."]), how)
    )


@form("code", 2.0)
def what_prints(rng: random.Random) -> Exchange:
    kind = rng.randrange(6)
    word = rng.choice(_WORDS)
    first, second = rng.randint(2, 9), rng.randint(2, 9)
    if kind == 0:
        code, result = f"x = {first}\ny = {second}\nprint(x + y)", str(first + second)
        why = f"x is {first}, y is {second}, and {first} + {second} = {first + second}"
    elif kind == 1:
        code, result = f'word = "{word}"\nprint(len(word))', str(len(word))
        why = f"the word {word} has {len(word)} letters"
    elif kind == 2:
        items = [rng.randint(1, 9) for _ in range(3)]
        index = rng.randrange(3)
        code, result = f"items = {items}\nprint(items[{index}])", str(items[index])
        why = f"index {index} is item number {index + 1}, as lists count from zero"
    elif kind == 3:
        code, result = f"for i in range({first % 5 + 2}):\n    print(i)", ", ".join(map(str, range(first % 5 + 2)))
        why = f"range({first % 5 + 2}) counts from 0 to {first % 5 + 1}"
    elif kind == 4:
        code, result = f"x = {first}\nx = x * {second}\nprint(x)", str(first * second)
        why = f"{first} * {second} = {first * second}"
    else:
        code, result = f'word = "{word}"\nprint(word.upper())', word.upper()
        why = "the method upper makes all letters capital"
    ask = rng.choice(
        ["What does this code print?", "What is the output of this program?", "What will Python print here?"]
    )
    return Exchange(
        "what_prints", "Coding & Debugging", "easy", "reading code", f"{ask}\n\n{block(code)}",
        f"It prints {result}, because {why}.",
    ).then("And in which language is it?", "It is written in Python.")  # fmt: skip


@form("code", 1.5)
def fix_bug(rng: random.Random) -> Exchange:
    task, name, arguments, body, _, _, _ = rng.choice([row for row in FUNCTIONS if ";" not in row[3]])
    right = function_source(name, arguments, body)
    kind = rng.randrange(3)
    if kind == 0:
        wrong, why = right.replace("):\n", ")\n", 1), "The colon after the arguments was missing."
    elif kind == 1:
        wrong, why = right.replace("\n    return", "\nreturn", 1), "The line with return was not indented."
    else:
        wrong, why = right.replace("return ", "", 1), "The keyword return was missing, so the result was lost."
    ask = rng.choice(
        ["Fix the bug in this function:", "Why does this Python code not work?", "Please debug this code."]
    )
    return Exchange(
        "fix_bug", "Coding & Debugging", "hard", f"a function that {task}", f"{ask}\n\n{block(wrong)}",
        f"{why} Here is the corrected code:\n\n{block(right)}",
    )  # fmt: skip


@form("code", 2.0)
def write_snippet(rng: random.Random) -> Exchange:
    task, language, snippet = rng.choice(SNIPPETS)
    shown = {"sql": "SQL", "bash": "Bash", "javascript": "JavaScript", "html": "HTML", "css": "CSS"}[language]
    instruction = rng.choice(
        [f"How do I {task} in {shown}?", f"Write {shown} code to {task}.", f"Show me how to {task} with {shown}."]
    )
    answer = f"Use this to {task}:\n\n{block(snippet.replace(';;', chr(10)), language)}"
    return Exchange("write_snippet", "Coding & Debugging", "easy", f"{shown}: {task}", instruction, answer)


@form("code", 1.5)
def code_question(rng: random.Random) -> Exchange:
    question, answer = rng.choice(CODE_QUESTIONS)
    ending = rng.choice(
        ["", "", " Please give a short answer.", " I am a beginner.", " I have a job interview tomorrow."]
    )
    return Exchange(
        "code_question",
        "Coding & Debugging",
        "easy",
        question.rstrip("?"),
        question + ending,
        answer.replace("\\n", "\n"),
    )


@form("code", 1.0)
def explain_function(rng: random.Random) -> Exchange:
    task, name, arguments, body, how, call, result = rng.choice(FUNCTIONS)
    ask = rng.choice(
        ["What does this function do?", "Explain this Python function.", "Can you tell me what this code does?"]
    )
    exchange = Exchange(
        "explain_function", "Coding & Debugging", "medium", f"a function that {task}",
        f"{ask}\n\n{block(function_source(name, arguments, body))}", f"The function {name} {task}. {upper_first(how)}",
    )  # fmt: skip
    return exchange.then(f"What is the result of {call}?", f"The result of {call} is {result}.")
