"""Forms that write and edit: stories, poems, messages, corrections and summaries."""
# ruff: noqa: D103 (a form is described by its name and its instructions)

from __future__ import annotations

import random

from .base import Exchange, article, bullets, form, numbered, table, upper_first
from .facts import LISTS


HEROES = (
    "fox",
    "robot",
    "dragon",
    "sailor",
    "mouse",
    "painter",
    "wizard",
    "girl",
    "boy",
    "owl",
    "bear",
    "baker",
    "knight",
    "turtle",
)
TRAITS = ("brave", "lonely", "curious", "lazy", "clever", "shy", "old", "tiny", "kind", "hungry")
# place | what is found there
SCENES = table(
    """
a dark forest|a small light between the trees
a quiet village|a letter without a name
a snowy mountain|a cave full of crystals
a deep cave|a door made of silver
an old castle|a clock that ran backwards
a busy market|a map with a red cross
a green island|a bottle with a message
a big city|a garden on a roof
a desert|a well with sweet water
a lighthouse|a song in the wind
"""
)
LESSONS = ("never to give up", "to trust a friend", "to share", "to be patient", "to listen", "to ask for help")
# topic | first line | second line | third line | fourth line; the second and fourth rhyme
POEMS = table(
    """
the sea|The waves come in, the waves go out,|they sing a song of blue,|the gulls are crying all about,|and the sea sings back to you.
the moon|The moon looks down on hill and lake,|so silver and so bright,|it keeps the quiet stars awake|and watches through the night.
autumn|The leaves turn red, the leaves turn gold,|they dance along the lane,|the mornings now are clear and cold|and evenings bring the rain.
winter|The snow lies soft on roof and tree,|the garden is asleep,|the lake is still as still can be|and all the drifts are deep.
spring|The birds return, the buds appear,|the grass is fresh and green,|it is the brightest time of year|that I have ever seen.
rain|The rain is tapping on the glass,|it makes a little tune,|it feeds the roots beneath the grass|on a gray afternoon.
friendship|A friend is like a steady light|that guides you through the storm,|a hand to hold in darkest night|that keeps your courage warm.
coffee|The cup is hot, the kitchen still,|the day is not yet here,|the steam climbs up the window sill|and makes my thinking clear.
a cat|The cat lies sleeping in the sun,|she does not hear a sound,|but when the mice begin to run|her paws fly off the ground.
trees|The trees stand tall in wind and snow,|their roots are old and deep,|they watch the seasons come and go|while all the children sleep.
"""
)
# wrong | right | why
MISTAKES = table(
    """
She go to school every day.|She goes to school every day.|after she, the verb needs an s
He have two dogs.|He has two dogs.|the form after he is has
They was late again.|They were late again.|the plural of was is were
I has a question.|I have a question.|the form after I is have
There is many people here.|There are many people here.|people is plural
He do not like tea.|He does not like tea.|the form after he is does
We goes to the park.|We go to the park.|after we, the verb has no s
The childs are playing.|The children are playing.|the plural of child is children
I seen that movie.|I saw that movie.|the past of see is saw
She buyed a new car.|She bought a new car.|the past of buy is bought
He runned very fast.|He ran very fast.|the past of run is ran
Me and him are friends.|He and I are friends.|the subject needs he and I
I am more taller than you.|I am taller than you.|taller is enough without more
She can sings well.|She can sing well.|after can comes the plain verb
He is a honest man.|He is an honest man.|the h in honest is silent
Yesterday I go home early.|Yesterday I went home early.|yesterday needs the past tense
"""
)
# casual | formal
REGISTERS = table(
    """
Hey, can you send me the file?|Dear Sir or Madam, could you please send me the file?
I can't come today, sorry.|I regret that I am unable to attend today.
Thanks a lot for your help!|I would like to express my sincere gratitude for your assistance.
What's up with my order?|I would like to ask about the status of my order.
Gimme five more minutes.|I would be grateful for five more minutes.
This plan is bad.|I have some concerns about this plan.
Call me when you can.|Please call me at your earliest convenience.
We gotta fix this now.|This matter requires our immediate attention.
"""
)
# present | past
TENSES = table(
    """
I walk to the station.|I walked to the station.
She writes a letter.|She wrote a letter.
We eat bread and cheese.|We ate bread and cheese.
He reads a long book.|He read a long book.
They play in the garden.|They played in the garden.
The dog runs to the door.|The dog ran to the door.
I drink a cup of tea.|I drank a cup of tea.
You sing a happy song.|You sang a happy song.
"""
)
# text | its summary | a title
TEXTS = table(
    """
The town library will close for three weeks in July. Workers will paint the walls and put in new lamps. Books can be returned at the town hall.|The library closes for three weeks in July for repairs.|Library Closed in July
Our school started a garden last spring. Every class has its own bed. The children learn how vegetables grow and sell them at the market.|Children at the school grow and sell vegetables in their own garden.|A Garden for Every Class
The train to the coast was late again on Monday. A tree had fallen on the tracks. Passengers waited for two hours and then took a bus.|A fallen tree delayed the train to the coast by two hours.|Tree Stops Train
A small bakery won the prize for the best bread in the city. The baker uses old grains and a slow dough. Since then, people stand in line every morning.|A small bakery won a prize for its slow bread and is now very popular.|The Best Bread in the City
Scientists counted the birds on the island. There are twice as many as ten years ago. They think that the ban on cats has helped.|The number of birds on the island has doubled, perhaps thanks to the ban on cats.|More Birds on the Island
The company let its people work from home on Fridays. After a year it asked them how it went. Most of them slept better and got more done.|Working from home on Fridays made most people rest better and get more done.|Fridays at Home
A new bridge for bicycles opened over the river. It saves people ten minutes on the way to work. Cars have to use the old bridge.|A new bicycle bridge saves people ten minutes.|Ten Minutes Faster by Bike
The football team lost its first three games. Then a new coach came. Now the team has won five times in a row.|After a bad start, the team has won five games under a new coach.|A New Coach, Five Wins
"""
)
OCCASIONS = table(
    """
thank my neighbor for watering my plants|thank you so much for watering my plants while I was away. Everything is green and healthy
invite a friend to dinner on Saturday|would you like to come to dinner on Saturday at seven? I will cook something simple
apologize for being late|I am sorry that I was late today. I will leave home earlier next time
ask my teacher for more time|could I please have two more days for the essay? I was ill last week
congratulate a colleague on a new job|congratulations on your new job! You have earned it, and we will miss you
cancel an appointment|I am afraid I must cancel our appointment. Could we find another day
remind my team of the meeting|this is a short reminder of our meeting tomorrow at ten. Please bring your notes
ask a landlord to repair the heating|the heating in my flat is not working. Could you please send someone to repair it
"""
)


@form("writing", 2.5)
def story(rng: random.Random) -> Exchange:
    trait, hero = rng.choice(TRAITS), rng.choice(HEROES)
    place, found = rng.choice(SCENES)
    lesson = rng.choice(LESSONS)
    who = article(f"{trait} {hero}")
    instruction = rng.choice(
        [
            f"Write a short story about {who} in {place}.",
            f"Tell me a story about {who} who learns {lesson}.",
            f"Write a bedtime story for a child.\n\nHero: {who}\nPlace: {place}\nLesson: {lesson}",
            f"Write three sentences about {who} in {place}.",
        ]
    )
    first = f"Once there was {who} who lived near {place}."
    second = f"One day the {hero} found {found}."
    third = f"In the end the {hero} learned {lesson}."
    exchange = Exchange("story", "Creative writing", "medium", who, instruction, f"{first} {second} {third}")
    return (
        exchange.then(
            rng.choice(["Give the story a title.", "What would be a good title?"]),
            f"The {upper_first(trait)} {upper_first(hero)}",
        )
        .then("Who is the hero of the story?", f"The hero is {who}.")
        .then("How does it end?", third)
    )


@form("writing", 1.5)
def poem(rng: random.Random) -> Exchange:
    topic, *lines = rng.choice(POEMS)
    two = rng.random() < 0.3
    adjective = rng.choice(["short", "simple", "gentle", "little"])
    if two:
        instruction = rng.choice(
            [f"Write two lines of poetry about {topic}.", f"Write a poem of two lines about {topic}."]
        )
    else:
        instruction = rng.choice(
            [
                f"Write a {adjective} poem about {topic}.",
                f"Can you write a {adjective} rhyme about {topic}?",
                f"A {adjective} poem about {topic}, please.",
            ]
        )
    exchange = Exchange(
        "poem", "Creative writing", "medium", topic, instruction, "\n".join(lines[:2] if two else lines)
    )
    return exchange.then("Give it a title.", upper_first(topic))


@form("writing", 2.0)
def correct_grammar(rng: random.Random) -> Exchange:
    wrong, right, why = rng.choice(MISTAKES)
    instruction = rng.choice(
        [
            f"Correct the grammar: {wrong}",
            f'Is this sentence correct? "{wrong}"',
            f"Please fix the mistake in this sentence and explain it.\n\n{wrong}",
            f'Find the error in "{wrong}"',
        ]
    )
    if "explain" in instruction:
        answer = f"{right}\n\nReason: {why}."
    elif instruction.startswith("Is"):
        answer = f'No. The correct sentence is "{right}", because {why}.'
    else:
        answer = right
    exchange = Exchange("correct_grammar", "Editing", "easy", "grammar", instruction, answer)
    return exchange.then(rng.choice(["Why?", "Why is that?"]), f"Because {why}.")


@form("writing", 1.2)
def formal(rng: random.Random) -> Exchange:
    casual, polite = rng.choice(REGISTERS)
    instruction = rng.choice(
        [
            f"Rewrite this in a formal tone: {casual}",
            f"Make this message more polite.\n\n{casual}",
            f'How can I say "{casual}" politely?',
        ]
    )
    exchange = Exchange("formal", "Editing", "medium", "tone", instruction, polite)
    return exchange.then("And how would I say it to a friend?", casual)


@form("writing", 1.2)
def tense(rng: random.Random) -> Exchange:
    present, past = rng.choice(TENSES)
    if rng.random() < 0.6:
        instruction, answer = (
            rng.choice([f"Put this sentence into the past tense: {present}", f"Change to past tense.\n\n{present}"]),
            past,
        )
    else:
        instruction, answer = f"Put this sentence into the present tense: {past}", present
    return Exchange("tense", "Editing", "easy", "tenses", instruction, answer)


@form("writing", 1.8)
def summarize(rng: random.Random) -> Exchange:
    text, summary, title = rng.choice(TEXTS)
    instruction = rng.choice(
        [
            f"Summarize this text in one sentence:\n\n{text}",
            f"{text}\n\nWhat is the main point of this text?",
            f"Please shorten the following news item.\n\n{text}",
        ]
    )
    exchange = Exchange("summarize", "Editing", "medium", title, instruction, summary)
    return exchange.then(rng.choice(["Give it a title.", "Suggest a headline."]), title)


@form("writing", 0.8)
def headline(rng: random.Random) -> Exchange:
    text, summary, title = rng.choice(TEXTS)
    exchange = Exchange(
        "headline", "Creative writing", "medium", title, f"Write a headline for this text.\n\n{text}", title
    )
    return exchange.then("And a summary in one sentence?", summary, category="Editing")


@form("general", 1.2)
def repeat(rng: random.Random) -> Exchange:
    pool = [word for _, words in LISTS for word in words.split(", ")]
    words = rng.sample(pool, rng.randint(2, 6))
    line = ", ".join(words)
    place = rng.randrange(len(words) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        instruction, answer = f"Repeat these words in the same order: {line}.", line
    elif kind == 1:
        instruction, answer = (
            f"Which word comes after {words[place]}?\n\n{line}",
            f"After {words[place]} comes {words[place + 1]}.",
        )
    elif kind == 2:
        instruction, answer = f"Turn this into a list with dashes: {line}.", bullets(words)
    else:
        instruction, answer = f"Number these words.\n\n{line}", numbered(words)
    exchange = Exchange("repeat", "Editing", "very easy", "a list of words", instruction, answer)
    return exchange.then("Which one comes first?", f"{upper_first(words[0])} comes first.").then(
        "And the last one?", f"The last one is {words[-1]}."
    )


@form("writing", 1.5)
def message(rng: random.Random) -> Exchange:
    purpose, body = rng.choice(OCCASIONS)
    name = rng.choice(["Maria", "Tom", "Lisa", "Paul", "Mrs. Smith", "Mr. Brown"])
    kind = rng.choice(["message", "email", "note"])
    instruction = rng.choice(
        [
            f"Write a short {kind} to {purpose}.",
            f"Help me write {article(kind)} to {purpose}. Her or his name is {name}.",
        ]
    )
    greeting = f"Dear {name}," if name in instruction else "Hello,"
    end = "?" if body.split(". ")[-1].startswith(("Could", "could", "would")) else "."
    exchange = Exchange(
        "message",
        "Creative writing",
        "easy",
        purpose,
        instruction,
        f"{greeting}\n\n{upper_first(body)}{end}\n\nBest wishes",
    )
    return exchange.then(
        "Make the greeting more casual.", f"Hi!\n\n{upper_first(body)}{end}\n\nBest wishes", category="Editing"
    )
