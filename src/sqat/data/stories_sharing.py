"""Plots about friends who give, share and make things together, in the language of `stories_template`."""

SWAP = """
@pair
{hero} had {toy.a}, and {friend} had {toy2.a}.
| {hero}'s best toy was {toy.a}. {friend}'s best toy was {toy2.a}.

{one_day}, {friend} said, "I like your ^{toy}. [Can|May] I play with it?"
| {one_day}, {friend} looked at {hero} and said, "I wish I could play with your ^{toy}."
"[Yes|Of course]," said {hero}, "and I will play with your ^{toy2}."
| "Let us [trade|swap]," said {hero}. "Then I can play with your ^{toy2}."
So {hero} gave {friend} the ^{toy}, and {friend} gave {hero} the ^{toy2}.
| They [shook hands|smiled]. {hero} gave {friend} the ^{toy} and got the ^{toy2}.

{hero} took the ^{toy2} to the {place}, and {friend} took the ^{toy} to the {place2}.
| {hero} played with the ^{toy2} {place.at} {place}. {friend} played with the ^{toy} {place2.at} {place2}.
In the evening, they met again. {hero} said, "I had fun {place.at} ^{place}, but I miss my ^{toy}."
| In the evening, {hero} came back and said, "It was nice {place.at} ^{place}, but I miss my ^{toy}."
"I miss my ^{toy2.colour} ^{toy2} too," said {friend}.
| "And I want my ^{toy2.colour} ^{toy2} back," said {friend}.
So they traded back, and {hero} had the ^{toy.colour} ^{toy} again.
| So {friend} gave back the {toy}, and {hero} gave back the ^{toy2}.
They [learned|knew now] that it is fun to share.
| "We can do it again [next week|another day]," said {hero}, and {friend} [laughed|smiled].
| "Next time, we will play with both of them together," said {friend}.
"""

TWO_COLOURS = """
@pair
{one_day}, {hero}'s {elder} [gave them|asked them to paint] an old {paintable}.
| {one_day}, they [wanted|were asked] to paint an old {paintable} for {hero}'s {elder}.
"Let us make it {colour}," said {hero}. "I like {colour} best."
| {hero} [wanted to paint it|said it must be] {colour}.
"No, {colour2} is [better|nicer]," said {friend}.
| But {friend} wanted it to be {colour2}.

They were [angry|cross] and [did not talk|sat far apart].
| They talked and talked, but they could not agree.
|
Then {hero}'s {elder} came and asked, "What is wrong?"
| "Why are you so sad?" asked {hero}'s {elder}.
"{friend} wants ^{colour2}, but I want ^{colour}," said ^{hero}.
| "{hero} wants ^{colour}, but I want ^{colour2}," said ^{friend}.
"Why not use both?" said {hero}'s {elder} with a smile.
| "There is room for two colors," said {hero}'s {elder}.

So {hero} painted one side ^{colour}, and {friend} painted the other side ^{colour2}.
| So {hero} painted the top ^{colour}, and {friend} painted the bottom ^{colour2}.
When they were done, they looked at the ^{paintable}. It was so [beautiful|pretty].
| Soon the old ^{paintable} looked [new|beautiful|so pretty] in {colour} and ^{colour2}.
{friend} said, "I like your ^{colour}." "And I like your ^{colour2}," said ^{hero}.
| {hero} said, "I am sorry, ^{friend}. Your ^{colour2} is very nice."
| "We did it together," said {hero} and gave ^{friend} a hug.
They were best friends again.
| From that day on, they [always shared|never fought about colors again].
@smile
"""

BIRTHDAY = """
@trio
{one_day}, it was {hero}'s birthday, and there was a party {place.at} {place}.
| {one_day}, they had a party {place.at} {place}. It was {hero}'s birthday.
{friend} gave {hero} {toy.a}, and {friend2} gave {hero} {toy2.a}.
| {friend} came with {toy.a} for {hero}. {friend2} came with {toy2.a}.
"Thank you for the {toy}, ^{friend}," said {hero}. "And thank you for the ^{toy2}, ^{friend2}."
| {hero} [was so happy|jumped for joy] and played with the {toy} first and then with the ^{toy2}.
There was {food.a} for everyone, and they all [sang|danced|played games].
|

The next day, {hero}'s {elder} [asked|wanted to know], "Who gave you the {toy.colour} ^{toy}?"
| That night, {hero}'s {elder} asked, "Who gave you this {toy.colour} ^{toy}?"
"It is from ^{friend}," said ^{hero}.
| "It was a gift from ^{friend}," said ^{hero}.
"And who gave you the {toy2.colour} ^{toy2}?" asked {hero.their} {elder}.
"That was ^{friend2}," [said|answered] {hero}. "I [love|like] them both."
| "It came from ^{friend2}," [said|answered] {hero}. "I [love|like] them both."

"You have good friends. Do not forget to thank them," said {hero}'s {elder}.
| "How nice of them!" said {hero}'s {elder}. "Let us thank them."
So {hero} made a card for {friend} and a card for ^{friend2}.
| So {hero} drew a picture of the {toy} for ^{friend} and a picture of the ^{toy2} for ^{friend2}.
@smile
"""

COLD_DAY = """
@pair
One [cold|windy|gray] day, they [went|walked] to the {place}.
| It was a [cold|windy|gray] day, but they wanted to go to the {place}.
{hero} had on {clothing.a}, but {friend} had [nothing warm|only a thin shirt].
| {hero} wore {clothing.a}. {friend} had [nothing warm|only a thin shirt].
On the way, the wind blew and blew. "I am so cold," said ^{friend}.
| Soon it began to [snow|rain]. "I am so cold," said ^{friend}.
"Here, take my ^{clothing}," said {hero}. "I can run to keep warm."
| "You can have my ^{clothing}," said {hero}. "I am warm enough."
{friend} put on the ^{clothing.colour} ^{clothing} and felt better [at once|very soon].
| {hero} gave the ^{clothing.colour} ^{clothing} to ^{friend}, who felt better [at once|very soon].

Later, {hero} was hungry. "I have nothing to eat," {hero.they} said.
| After some time, {hero} was hungry and had nothing to eat.
"I have {food.a}," said {friend}. "[Half of it is for you|We can share it]."
| {friend} had {food.a}. "[Half of it is for you|We can share it]," {friend.they} said.
They [sat down|rested] {place.at} ^{place} and ate the ^{food}.
| So they ate the ^{food} together and [laughed at the wind|told stories].

The next day, {friend} came to {hero}'s house and [gave|brought] back the ^{clothing}.
| In the evening, {friend} [gave|handed] back the ^{clothing.colour} ^{clothing}.
"Thank you, ^{hero}," {friend.they} said. "You kept me warm."
| "It kept me warm all day," {friend.they} said. "Thank you, ^{hero}."
"And thank you for the ^{food}," said {hero}. "[It was so good|I was so hungry]."
| {hero} [smiled|laughed]. "And you shared your ^{food} with me!"
That is how friends help each other.
|
|
"""

BAKING = """
@trio
{one_day}, they wanted to make a [big|good|nice] {dish} for {hero}'s {elder}.
| {one_day}, {hero}'s {elder} was [sick|sad|tired], so they wanted to bring {elder.them} a [big|good|nice] {dish}.
{hero} brought the {ingredient}, {friend} brought the {ingredient2}, and {friend2} brought the {ingredient3}.
| {hero} had some {ingredient} at home. {friend} came with {ingredient2}, and {friend2} came with {ingredient3}.

{hero} put in the ^{ingredient} first. Then {friend} put in the ^{ingredient2}.
| "First we need my ^{ingredient}," said {hero}. "Then {friend} can put in the ^{ingredient2}."
"And now my ^{ingredient3}," said {friend2}.
| Last of all, {friend2} put in the ^{ingredient3}.
They [mixed|stirred] it and made a [mess|big mess], but they [laughed|had fun].
|
Then they waited and waited until it was ready.
| Soon the whole house smelled [good|wonderful].

"Here is your ^{dish}," they said to {hero}'s {elder}.
| They gave the ^{dish} to {hero}'s {elder} and [waited|smiled].
{elder.They} [ate some|took a bite] and asked, "Who brought the {ingredient}?" "That was me," said ^{hero}.
| {elder.They} [ate some|took a bite] and asked, "Who brought the {ingredient2}?" "It was ^{friend}," said {hero}.
| {elder.They} [ate some|took a bite] and asked, "Who brought the {ingredient3}?" "It was ^{friend2}," said {hero}.
"[It is|This is] the best ^{dish} I ever had," {elder.they} said. "Thank you all."
| "You are such good [cooks|friends]," {elder.they} said. "Thank you for the ^{dish}."
Then they [all ate together|sat down and ate it all].
| There was enough for everyone.
"""

NEW_FRIEND = """
Once upon a time, there was {hero.a} named {hero}. {one_day}, {hero.they} saw {friend.a} {place.at} {place}.
| {one_day}, {hero.a} named {hero} went to the {place} and saw {friend.a} who was all alone.
| {one_day}, {friend.a} sat all alone {place.at} {place}. Then {hero.a} named {hero} [came by|came along].
| Once upon a time, {hero.a} named {hero} went to the {place} and saw {friend.a} sitting there.
{hero} said, "Hello, my name is ^{hero}. What is your name?"
| {hero} [went|walked] up to {friend.them}. "I am ^{hero}. What is your name?"
"My name is {friend}," {friend.they} said. "I am new here, and I have no friends."
| "I am called {friend}," {friend.they} said [in a small voice|and looked at the ground]. "I do not know anyone here."

"You can play with me," said ^{hero}. "Look, I have {toy.a}."
| "Then I will be your friend," said ^{hero}. "Do you like my toy? It is {toy.a}."
They played with the ^{toy} until [the sun went down|it was time to go home|they were tired].
| They laughed and played with the ^{toy} all afternoon.
"Let us meet here {place.at} ^{place} again tomorrow," said {friend}.
| "Will you come back to the ^{place} tomorrow?" asked {friend}. "[Yes|Of course]!" said ^{hero}.

At home, {hero.their} {elder} asked, "Who did you play with?"
| When {hero} came home, {hero.their} {elder} asked, "Did you meet someone?"
"I met {friend.a} named ^{friend}," said {hero}. "We played with my ^{toy}."
| "I have a new friend named ^{friend}," said {hero}. "We played with my ^{toy}."
"That is [nice|wonderful]," said {hero.their} {elder}. "Take {food.a} to ^{friend} tomorrow."
The next day, {hero} went to the ^{place} and gave ^{friend} the ^{food}.
| So the next day, {hero} took the ^{food} to the ^{place} and gave it to ^{friend}.
They [became|were] [good|best] friends and were never alone again.
| From then on, they played together every day.
"""
