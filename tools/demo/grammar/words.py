"""Forms that translate, and forms written in Spanish, German and French."""

from __future__ import annotations

import random

from .base import Exchange, form, numbered, table, upper_first


LANGUAGES = ("Spanish", "German", "French")
# English | Spanish | German | French
PHRASES = table(
    """
Good morning|Buenos días|Guten Morgen|Bonjour
Good evening|Buenas tardes|Guten Abend|Bonsoir
Good night|Buenas noches|Gute Nacht|Bonne nuit
Thank you very much|Muchas gracias|Vielen Dank|Merci beaucoup
See you tomorrow|Hasta mañana|Bis morgen|À demain
How are you?|¿Cómo estás?|Wie geht es dir?|Comment vas-tu ?
What is your name?|¿Cómo te llamas?|Wie heißt du?|Comment t'appelles-tu ?
I do not understand|No entiendo|Ich verstehe nicht|Je ne comprends pas
I am hungry|Tengo hambre|Ich habe Hunger|J'ai faim
I am tired|Estoy cansado|Ich bin müde|Je suis fatigué
I love you|Te quiero|Ich liebe dich|Je t'aime
It is raining|Está lloviendo|Es regnet|Il pleut
The weather is nice today|Hoy hace buen tiempo|Heute ist schönes Wetter|Il fait beau aujourd'hui
How much does it cost?|¿Cuánto cuesta?|Wie viel kostet das?|Combien ça coûte ?
What time is it?|¿Qué hora es?|Wie spät ist es?|Quelle heure est-il ?
I need help|Necesito ayuda|Ich brauche Hilfe|J'ai besoin d'aide
Happy birthday|Feliz cumpleaños|Alles Gute zum Geburtstag|Joyeux anniversaire
Have a nice trip|Buen viaje|Gute Reise|Bon voyage
I am learning Spanish|Estoy aprendiendo español|Ich lerne Spanisch|J'apprends l'espagnol
The food is very good|La comida está muy buena|Das Essen ist sehr gut|Le repas est très bon
The cat sleeps on the sofa|El gato duerme en el sofá|Die Katze schläft auf dem Sofa|Le chat dort sur le canapé
My sister lives in Berlin|Mi hermana vive en Berlín|Meine Schwester wohnt in Berlin|Ma sœur habite à Berlin
I like to read books|Me gusta leer libros|Ich lese gern Bücher|J'aime lire des livres
We are going to the beach|Vamos a la playa|Wir gehen an den Strand|Nous allons à la plage
The train is late|El tren llega tarde|Der Zug hat Verspätung|Le train est en retard
Can you help me?|¿Puedes ayudarme?|Kannst du mir helfen?|Peux-tu m'aider ?
"""
)
# English noun with article | Spanish | German | French
PLACES = table(
    """
the station|la estación|der Bahnhof|la gare
the hotel|el hotel|das Hotel|l'hôtel
the museum|el museo|das Museum|le musée
the beach|la playa|der Strand|la plage
the bank|el banco|die Bank|la banque
the school|la escuela|die Schule|l'école
the hospital|el hospital|das Krankenhaus|l'hôpital
the market|el mercado|der Markt|le marché
the church|la iglesia|die Kirche|l'église
the library|la biblioteca|die Bibliothek|la bibliothèque
"""
)
# English plural | Spanish | German | French
PLURALS = table(
    """
cats|gatos|Katzen|chats
dogs|perros|Hunde|chiens
books|libros|Bücher|livres
houses|casas|Häuser|maisons
friends|amigos|Freunde|amis
brothers|hermanos|Brüder|frères
tickets|billetes|Karten|billets
tables|mesas|Tische|tables
"""
)
COUNTS = table(
    """
two|dos|zwei|deux
three|tres|drei|trois
four|cuatro|vier|quatre
five|cinco|fünf|cinq
six|seis|sechs|six
seven|siete|sieben|sept
"""
)
# English word | Spanish | German | French
WORDS = table(
    """
bread|pan|Brot|pain
water|agua|Wasser|eau
milk|leche|Milch|lait
apple|manzana|Apfel|pomme
house|casa|Haus|maison
tree|árbol|Baum|arbre
sun|sol|Sonne|soleil
moon|luna|Mond|lune
dog|perro|Hund|chien
cat|gato|Katze|chat
fish|pescado|Fisch|poisson
red|rojo|rot|rouge
green|verde|grün|vert
black|negro|schwarz|noir
mother|madre|Mutter|mère
father|padre|Vater|père
day|día|Tag|jour
night|noche|Nacht|nuit
winter|invierno|Winter|hiver
summer|verano|Sommer|été
window|ventana|Fenster|fenêtre
door|puerta|Tür|porte
street|calle|Straße|rue
book|libro|Buch|livre
"""
)

# what | Spanish question and answer | German | French; the parts are questions and answers by ">>"
CULTURE = {
    "es": table(
        """
¿Cuál es la capital de Francia?|La capital de Francia es París.
¿Cuál es la capital de Alemania?|La capital de Alemania es Berlín.
¿Cuál es la capital de España?|La capital de España es Madrid.
¿Cuál es la capital de Perú?|La capital de Perú es Lima.
¿Qué es la fotosíntesis?|La fotosíntesis es el proceso con el que las plantas convierten la luz en azúcar.
¿Qué es la gravedad?|La gravedad es la fuerza que atrae los objetos hacia la Tierra.
¿Qué es un volcán?|Un volcán es una abertura en la tierra por la que sale roca caliente.
¿Quién escribió Don Quijote?|Miguel de Cervantes escribió Don Quijote.
¿Cuántos días tiene una semana?|Una semana tiene siete días.
¿Por qué flota el hielo?|El hielo flota porque es menos denso que el agua.
¿Cómo puedo dormir mejor?|Acuéstate siempre a la misma hora y deja el teléfono lejos de la cama.
¿Cómo puedo aprender un idioma?|Escucha cada día, habla desde el principio y lee textos sencillos.
¿Cómo se hace una tortilla de patatas?|Fríe las patatas, mézclalas con huevos batidos y cocina la mezcla por los dos lados.
Escribe una frase sobre el mar.|El mar brilla como un espejo bajo el sol de la mañana.
Escribe una frase sobre la luna.|La luna ilumina el camino de los viajeros.
Dame tres consejos para estudiar.|1. Haz un plan.\\n2. Descansa a menudo.\\n3. Explica el tema a un amigo.
Nombra tres animales del bosque.|Tres animales del bosque son el zorro, el ciervo y el búho.
Nombra tres frutas.|Tres frutas son la manzana, la naranja y la pera.
"""
    ),
    "de": table(
        """
Was ist die Hauptstadt von Frankreich?|Die Hauptstadt von Frankreich ist Paris.
Was ist die Hauptstadt von Deutschland?|Die Hauptstadt von Deutschland ist Berlin.
Was ist die Hauptstadt von Spanien?|Die Hauptstadt von Spanien ist Madrid.
Was ist die Hauptstadt von Österreich?|Die Hauptstadt von Österreich ist Wien.
Was ist Photosynthese?|Photosynthese ist der Vorgang, bei dem Pflanzen aus Licht Zucker machen.
Was ist die Schwerkraft?|Die Schwerkraft ist die Kraft, die Dinge zur Erde zieht.
Was ist ein Vulkan?|Ein Vulkan ist eine Öffnung in der Erde, aus der heißes Gestein kommt.
Wer schrieb Faust?|Johann Wolfgang von Goethe schrieb Faust.
Wie viele Tage hat eine Woche?|Eine Woche hat sieben Tage.
Warum schwimmt Eis?|Eis schwimmt, weil es weniger dicht ist als Wasser.
Wie kann ich besser schlafen?|Geh immer zur gleichen Zeit ins Bett und lege das Telefon weit weg.
Wie lerne ich eine Sprache?|Höre jeden Tag zu, sprich von Anfang an und lies einfache Texte.
Wie koche ich eine Suppe?|Schneide das Gemüse, koche es in Wasser und gib Salz dazu.
Schreibe einen Satz über das Meer.|Das Meer glänzt wie ein Spiegel in der Morgensonne.
Schreibe einen Satz über den Mond.|Der Mond zeigt den Reisenden den Weg.
Gib mir drei Tipps zum Lernen.|1. Mach einen Plan.\\n2. Mach oft Pausen.\\n3. Erkläre es einem Freund.
Nenne drei Tiere im Wald.|Drei Tiere im Wald sind der Fuchs, das Reh und die Eule.
Nenne drei Obstsorten.|Drei Obstsorten sind Äpfel, Orangen und Birnen.
"""
    ),
    "fr": table(
        """
Quelle est la capitale de la France ?|La capitale de la France est Paris.
Quelle est la capitale de l'Allemagne ?|La capitale de l'Allemagne est Berlin.
Quelle est la capitale de l'Espagne ?|La capitale de l'Espagne est Madrid.
Quelle est la capitale de l'Italie ?|La capitale de l'Italie est Rome.
Qu'est-ce que la photosynthèse ?|La photosynthèse permet aux plantes de transformer la lumière en sucre.
Qu'est-ce que la gravité ?|La gravité est la force qui attire les objets vers la Terre.
Qu'est-ce qu'un volcan ?|Un volcan est une ouverture dans la terre d'où sort de la roche chaude.
Qui a écrit Les Misérables ?|Victor Hugo a écrit Les Misérables.
Combien de jours y a-t-il dans une semaine ?|Il y a sept jours dans une semaine.
Pourquoi la glace flotte-t-elle ?|La glace flotte parce qu'elle est moins dense que l'eau.
Comment mieux dormir ?|Couche-toi toujours à la même heure et laisse ton téléphone loin du lit.
Comment apprendre une langue ?|Écoute chaque jour, parle dès le début et lis des textes simples.
Comment faire une soupe ?|Coupe les légumes, fais-les cuire dans l'eau et ajoute du sel.
Écris une phrase sur la mer.|La mer brille comme un miroir au soleil du matin.
Écris une phrase sur la lune.|La lune montre le chemin aux voyageurs.
Donne-moi trois conseils pour étudier.|1. Fais un plan.\\n2. Fais souvent des pauses.\\n3. Explique le sujet à un ami.
Nomme trois animaux de la forêt.|Trois animaux de la forêt sont le renard, le cerf et le hibou.
Nomme trois fruits.|Trois fruits sont la pomme, l'orange et la poire.
"""
    ),
}
_CATEGORY_OF_ROW = ("Information seeking",) * 10 + ("Advice seeking",) * 3 + ("Creative writing",) * 2 + (
    "Advice seeking", "Information seeking", "Information seeking",
)  # fmt: skip
_SUM = {
    "es": (("¿Cuánto es {0} más {1}?", "Calcula {0} + {1}."), "{0} + {1} = {2}.", "Ahora suma 10.", "{0} + 10 = {1}."),
    "de": (("Was ist {0} plus {1}?", "Berechne {0} + {1}."), "{0} + {1} = {2}.", "Addiere jetzt 10.", "{0} + 10 = {1}."),
    "fr": (("Combien font {0} plus {1} ?", "Calcule {0} + {1}."), "{0} + {1} = {2}.", "Ajoute maintenant 10.", "{0} + 10 = {1}."),
}  # fmt: skip
_HOW_TO_SAY = {
    "es": ("¿Cómo se dice {0} en inglés?", "Se dice {0}."),
    "de": ("Wie heißt {0} auf Englisch?", "Das heißt {0}."),
    "fr": ("Comment dit-on {0} en anglais ?", "On dit {0}."),
}
_ENDINGS = {
    "es": ("", "", " Responde en una frase.", " Es para la escuela.", " Gracias."),
    "de": ("", "", " Antworte in einem Satz.", " Es ist für die Schule.", " Danke."),
    "fr": ("", "", " Réponds en une phrase.", " C'est pour l'école.", " Merci."),
}
_COLUMN = {"es": 1, "de": 2, "fr": 3}


def sentence(rng: random.Random) -> tuple[str, ...]:
    """Return one sentence in English, Spanish, German and French."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(PHRASES)
    if kind == 2:
        place = rng.choice(PLACES)
        return (f"Where is {place[0]}?", f"¿Dónde está {place[1]}?", f"Wo ist {place[2]}?", f"Où est {place[3]} ?")
    if kind == 3:
        thing, count = rng.choice(PLURALS), rng.choice(COUNTS)
        return (
            f"I have {count[0]} {thing[0]}", f"Tengo {count[1]} {thing[1]}", f"Ich habe {count[2]} {thing[2]}",
            f"J'ai {count[3]} {thing[3]}",
        )  # fmt: skip
    if kind == 4:
        place, count = rng.choice(PLACES), rng.choice(COUNTS)
        return (
            f"{upper_first(place[0])} opens at {count[0]} o'clock", f"{upper_first(place[1])} abre a las {count[1]}",
            f"{upper_first(place[2])} öffnet um {count[2]} Uhr", f"{upper_first(place[3])} ouvre à {count[3]} heures",
        )  # fmt: skip
    thing, count = rng.choice(PLURALS), rng.choice(COUNTS)
    return (
        f"We see {count[0]} {thing[0]}", f"Vemos {count[1]} {thing[1]}", f"Wir sehen {count[2]} {thing[2]}",
        f"Nous voyons {count[3]} {thing[3]}",
    )  # fmt: skip


@form("translation", 4.0)
def translate(rng: random.Random) -> Exchange:
    versions = sentence(rng)
    column, other = rng.sample((1, 2, 3), 2)
    language = LANGUAGES[column - 1]
    english, result = versions[0], versions[column]
    end = "" if english.endswith("?") else "."
    instruction = rng.choice(
        [
            f'Translate "{english}" into {language}.',
            f'How do you say "{english}" in {language}?',
            f"Translate this sentence into {language}: {english}{end}",
            f"Please translate the following text into {language}.\n\n{english}{end}",
        ]
    )
    answer = f'"{english}" in {language} is "{result}".' if '"' in instruction else result + (end and ".")
    exchange = Exchange("translate", "Others", "easy", f"translation into {language}", instruction, answer)
    return exchange.then(
        rng.choice([f"And in {LANGUAGES[other - 1]}?", f"How do you say that in {LANGUAGES[other - 1]}?"]),
        f'In {LANGUAGES[other - 1]} it is "{versions[other]}".',
    )


@form("translation", 2.0)
def translate_back(rng: random.Random) -> Exchange:
    versions = sentence(rng)
    column = rng.choice((1, 2, 3))
    language = LANGUAGES[column - 1]
    instruction = rng.choice(
        [
            f'What does "{versions[column]}" mean in English?',
            f'Translate "{versions[column]}" from {language} into English.',
            f'I read "{versions[column]}" on a sign. What does it mean?',
        ]
    )
    exchange = Exchange(
        "translate_back", "Others", "easy", f"translation from {language}", instruction, f'It means "{versions[0]}".'
    )
    return exchange.then("Which language is that?", f"That is {language}.")


@form("translation", 2.5)
def translate_word(rng: random.Random) -> Exchange:
    versions = rng.choice(WORDS)
    column = rng.choice((1, 2, 3))
    language = LANGUAGES[column - 1]
    if rng.random() < 0.6:
        instruction = rng.choice(
            [f"What is the {language} word for {versions[0]}?", f'How do you say "{versions[0]}" in {language}?']
        )
        answer = f'The {language} word for {versions[0]} is "{versions[column]}".'
    else:
        instruction = f'What does the {language} word "{versions[column]}" mean?'
        answer = f'The {language} word "{versions[column]}" means {versions[0]}.'
    return Exchange("translate_word", "Others", "very easy", f"a {language} word", instruction, answer)


@form("translation", 1.0)
def word_list(rng: random.Random) -> Exchange:
    rows = rng.sample(WORDS, 3)
    column = rng.choice((1, 2, 3))
    words = ", ".join(row[0] for row in rows)
    instruction = rng.choice(
        [
            f"Translate these words into {LANGUAGES[column - 1]}: {words}.",
            f"What are {words} in {LANGUAGES[column - 1]}?",
        ]
    )
    return Exchange(
        "word_list", "Others", "medium", f"{LANGUAGES[column - 1]} words", instruction,
        "\n".join(f"- {row[0]}: {row[column]}" for row in rows),
    )  # fmt: skip


def _native(rng: random.Random, language: str) -> Exchange:
    kind = rng.randrange(5)
    if kind == 0:
        questions, answer, follow, follow_answer = _SUM[language]
        first, second = rng.randint(2, 20), rng.randint(2, 20)
        exchange = Exchange(
            f"native_{language}", "Math", "easy", "addition", rng.choice(questions).format(first, second),
            answer.format(first, second, first + second), language,
        )  # fmt: skip
        return exchange.then(follow, follow_answer.format(first + second, first + second + 10))
    if kind == 1:
        row = rng.choice(WORDS)
        question, answer = _HOW_TO_SAY[language]
        word = row[_COLUMN[language]]
        return Exchange(
            f"native_{language}",
            "Others",
            "very easy",
            "a word",
            question.format(word),
            answer.format(row[0]),
            language,
        )
    index = rng.randrange(len(CULTURE[language]))
    question, answer = CULTURE[language][index]
    return Exchange(
        f"native_{language}", _CATEGORY_OF_ROW[index], "easy", question.strip("¿?. "),
        question + rng.choice(_ENDINGS[language]), answer.replace("\\n", "\n"), language,
    )  # fmt: skip


@form("es")
def native_es(rng: random.Random) -> Exchange:
    return _native(rng, "es")


@form("de")
def native_de(rng: random.Random) -> Exchange:
    return _native(rng, "de")


@form("fr")
def native_fr(rng: random.Random) -> Exchange:
    return _native(rng, "fr")


__all__ = ["COUNTS", "CULTURE", "PHRASES", "PLACES", "PLURALS", "WORDS", "numbered", "sentence"]
