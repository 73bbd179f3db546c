"""The words of the built-in stories, grouped by the part they can play.

All are single and regular: "an" before a written vowel, "a" before any other letter, possessive with "'s". No word
stands in two groups that a recall probe may ask about (`KINDS`), so that a word tells its kind.
"""


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _list("""
    Lily Mia Anna Emma Zoe Ella Ruby Nora Clara Rosie Molly Daisy Lucy Sara Amy Kate Ivy Jane Maya Sophie Hannah Grace
    Alice Eva Lena Poppy Julia Nina Tina Bella Amelia Olivia Maria Leah Wendy Holly
""")
BOYS = _list("""
    Tom Ben Max Sam Tim Leo Jack Finn Noah Adam Oscar Henry Peter Paul Luke Owen Theo Jake Eli Hugo Oliver Daniel David
    Anton Billy Bobby Victor Simon Kevin Ryan Felix Milo George Ned Arthur Adrian
""")
# Animals bear names of their own, each either female or male like those of the children.
FEMALE_ANIMALS = _list("Pearl Dotty Fluffy Luna Mimi Coco Penny Tilly Bonnie Pixie Willow Hazel")
MALE_ANIMALS = _list("Pip Bruno Rusty Teddy Biscuit Rocky Buddy Toto Benny Ziggy Fuzzy Barney")

CHARACTER_ANIMALS = _list("rabbit fox bear mouse hedgehog squirrel owl frog beaver badger otter mole raccoon panda")
PETS = _list("kitten puppy duckling lamb bird turtle parrot piglet bunny chick pony hamster")
WILD_ANIMALS = _list("horse cow goat swan deer sheep eagle rooster goose pig cat dog crow donkey snail")
ELDERS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he", "aunt": "she", "uncle": "he"}

ADJECTIVES = _list("little kind small brave happy clever curious young shy gentle cheerful friendly playful quiet")
HOBBIES = _list("sing dance draw read run climb swim paint laugh jump")
COLOURS = _list("red blue green yellow orange purple pink white black brown gray gold silver")
NUMBERS = _list("three four five six seven eight nine ten eleven twelve")

TOYS = _list("""
    ball kite doll drum car truck train boat robot puzzle whistle flute horn balloon block marble puppet mask crown wand
    cape rocket plane violin trumpet spinner pinwheel bell flag camera tambourine dinosaur
""")
CLOTHES = _list("hat scarf coat sweater cap jacket shawl cloak vest raincoat poncho cardigan")
FRAGILE = _list("cup plate bowl mug lamp vase clock mirror bottle jug glass pitcher")
SMALL_THINGS = _list("shells stones flowers berries acorns leaves feathers buttons pebbles nuts cones beads")
PAINTABLE = _list("fence door wall bench gate table chair birdhouse cupboard ladder swing shed mailbox cart")
CONTAINERS = _list("box basket bag bucket jar pot chest sack suitcase tin")

FOODS = _list("""
    apple egg cookie cake pie sandwich muffin pear plum banana carrot pancake bun peach cupcake donut melon waffle
    pretzel tomato
""")
INGREDIENTS = _list("flour milk butter sugar honey cream cinnamon chocolate jam vanilla cocoa raisins")
DISHES = _list("pudding tart loaf custard strudel cobbler")

# Where one can go, where food is to be had, and where something can be hidden at home, by the preposition to use.
PLACES = {
    "in": _list("park forest barn meadow field library castle cave village treehouse museum zoo valley"),
    "at": _list("beach school playground station harbor pool theater camp fair lighthouse"),
    "on": _list("hill bridge island mountain"),
    "by": _list("pond river lake fountain well waterfall stream tower mill"),
}
SHOPS = {"in": _list("market orchard garden"), "at": _list("bakery farm shop store")}
SPOTS = {
    "under": _list("bed stairs desk sofa sink counter"),
    "behind": _list("curtain piano bookshelf couch stove"),
    "in": _list("closet wardrobe cabinet attic cellar pantry garage"),
}

DAYS = (
    "One day",
    "One sunny day",
    "One warm day",
    "One fine day",
    "One cloudy day",
    "One summer day",
    "One autumn day",
    "One bright morning",
    "One spring morning",
    "Early one morning",
    "One quiet afternoon",
    "One windy afternoon",
)

KINDS: dict[str, tuple[str, ...]] = {
    "name": GIRLS + BOYS + FEMALE_ANIMALS + MALE_ANIMALS,
    "elder": tuple(ELDERS),
    "pet": PETS,
    "animal": WILD_ANIMALS,
    "colour": COLOURS,
    "number": NUMBERS,
    "thing": TOYS + CLOTHES + FRAGILE,
    "small things": SMALL_THINGS,
    "paintable thing": PAINTABLE,
    "container": CONTAINERS,
    "food": FOODS,
    "ingredient": INGREDIENTS,
    "dish": DISHES,
    "place": sum((*PLACES.values(), *SHOPS.values()), ()),
    "spot": sum(SPOTS.values(), ()),
}
